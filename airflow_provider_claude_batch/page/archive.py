"""The archive: the receipts that lie in Airflow's XComs, each read once and remembered as long as it lies there."""

import logging
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from threading import Lock
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Text, case, cast, func, select

from airflow_provider_claude_batch.entry import Entry
from airflow_provider_claude_batch.page.elsewhere import Elsewhere
from airflow_provider_claude_batch.page.stored import LONGEST, TOO_LONG, Found, decode, is_of_its_time
from airflow_provider_claude_batch.receipt import XCOM_KEY, replace
from airflow_provider_claude_batch.submission import Submission, gather

MOST_XCOMS = 200_000
_VIEWS = 8
_LOOK_AGAIN, _PATIENCE = 60.0, 5.0

_TOO_NEW = "it was pushed more than a day before the time at which it says that it was submitted"

log = logging.getLogger(__name__)

Place = tuple[int, str, int]
Run = tuple[str, str]


class LeftOut(msgspec.Struct, frozen=True):
    """One receipt that cannot be used, where it lies, and why."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    at: datetime
    why: str


class Kept(msgspec.Struct, frozen=True):
    """What one XCom holds."""

    at: datetime
    entries: tuple[Entry, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class Snapshot(msgspec.Struct, frozen=True):
    """All entries at a moment, what is left out, and whether there are more than are remembered."""

    version: int
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    is_capped: bool


class View(NamedTuple):
    """What lies in the Dags that somebody may read."""

    submissions: list[Submission]
    left_out: list[LeftOut]
    is_capped: bool


class Reading(NamedTuple):
    """What was read of some runs, and how many XComs could not be read now: there, what is remembered stands in."""

    entries: list[Entry]
    left_out: list[LeftOut]
    unread: int


class Archive:
    """Remember entries, and read only those that are new: three queries at most, however many there are."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._mark: Any = None
        self._known: dict[Place, Kept] = {}
        self._away: dict[Place, tuple[Any, str]] = {}
        self._elsewhere = Elsewhere()
        self._snapshot = Snapshot(0, (), (), is_capped=False)
        self._gathered: dict[frozenset[str], tuple[int, list[Submission]]] = {}

    def view(self, dag_ids: frozenset[str]) -> View:
        """Return what lies in these Dags, newest first, and whether some are left out."""
        with self._lock:
            self._refresh()
            away = sorted(self._away.values(), key=lambda kept: kept[0].timestamp, reverse=True)
        if away:
            self._elsewhere.ask(reference for _, reference in away)
        with self._lock:
            self._take_what_was_away()
            left_out = [one for one in self._snapshot.left_out if one.dag_id in dag_ids]
            return View(self._gather(dag_ids), left_out, self._snapshot.is_capped)

    def read(self, name: str, runs: Collection[Run]) -> Reading:
        """Read all receipts of a submission in some runs again."""
        with _session() as session:
            values = [(place, row, _decode(row)) for run in runs for place, row in _rows(session, run=run)]
        away = self._elsewhere.read({value for *_, value in values if isinstance(value, str)}, _PATIENCE)
        kept: list[Kept] = []
        unread = 0
        for place, row, value in values:
            found = away.get(value) if isinstance(value, str) else value
            one = _kept(row, found) if found else self._known.get(place, Kept(row.timestamp))
            kept.append(one)
            unread += not found and (not one.entries or any(_is_of(entry, name) for entry in one.entries))
        entries = [entry for one in kept for entry in one.entries if _is_of(entry, name)]
        return Reading(entries, [odd for one in kept for odd in one.left_out], unread)

    def _gather(self, dag_ids: frozenset[str]) -> list[Submission]:
        snapshot = self._snapshot
        known = frozenset(entry.dag_id for entry in snapshot.entries) & dag_ids
        version, submissions = self._gathered.get(known, (-1, []))
        if version != snapshot.version:
            submissions = gather((entry for entry in snapshot.entries if entry.dag_id in known), submissions)
            self._gathered[known] = snapshot.version, submissions
            while len(self._gathered) > _VIEWS:
                self._gathered.pop(next(iter(self._gathered)))
        return submissions

    def _refresh(self) -> None:
        with _session() as session:
            mark = _mark(session)
            if mark != self._mark:
                self._read_changes(session, mark[0])
                self._mark = mark

    def _read_changes(self, session: Any, total: int) -> None:
        found, before = _places(session, total), len(self._known)
        self._known = {place: old for place, old in self._known.items() if found.get(place) == old.at}
        self._away = {place: old for place, old in self._away.items() if found.get(place) == old[0].timestamp}
        new = found.keys() - self._known.keys() - self._away.keys()
        if new:
            for place, row in _rows(session, since=min(found[place] for place in new)):
                self._remember(place, row, _decode(row))
        for place in new - self._known.keys() - self._away.keys():
            self._known[place] = Kept(found[place])  # it went away meanwhile
        if new or len(self._known) != before:
            self._renew()

    def _remember(self, place: Place, row: Any, value: Found | str) -> None:
        self._away.pop(place, None)
        if isinstance(value, str):
            self._away[place] = row, value
            return
        kept = _kept(row, value)
        for one in kept.left_out if place not in self._known else ():
            log.warning(
                "Left out the receipt of %s in the run %s of %s: %s.", row.task_id, row.run_id, row.dag_id, one.why
            )
        self._known[place] = msgspec.structs.replace(kept, entries=tuple(map(_slim, kept.entries)))

    def _take_what_was_away(self) -> None:
        read = [(place, row, self._elsewhere.take(reference)) for place, (row, reference) in self._away.items()]
        for place, row, found in read:
            if found is not None:
                self._remember(place, row, found)
        if any(found is not None for *_, found in read):
            self._renew()

    def _renew(self) -> None:
        entries = tuple(entry for kept in self._known.values() for entry in kept.entries)
        left_out = sorted((one for kept in self._known.values() for one in kept.left_out), key=lambda one: one.at)
        is_capped = len(self._known) >= MOST_XCOMS or bool(self._away)
        self._snapshot = Snapshot(self._snapshot.version + 1, entries, tuple(reversed(left_out)), is_capped=is_capped)


def _decode(row: Any) -> Found | str:
    return TOO_LONG if (row.length or 0) > LONGEST else decode(row.value)


def _kept(row: Any, found: Found) -> Kept:
    """Say where receipts lie, and where those that are left out."""
    place = (row.dag_id, row.run_id, row.task_id, row.map_index)
    fit = [receipt for receipt in found.receipts if is_of_its_time(receipt, row.timestamp)]
    whys = [*found.oddities, *[_TOO_NEW] * (len(found.receipts) - len(fit))]
    entries = tuple(Entry(receipt, *place, row.timestamp) for receipt in fit)
    return Kept(row.timestamp, entries, tuple(LeftOut(*place, row.timestamp, why) for why in whys))


def _is_of(entry: Entry, name: str) -> bool:
    return entry.receipt.submission == name


def _slim(entry: Entry) -> Entry:
    """Leave out what only the page of one submission shows."""
    receipt = replace(
        entry.receipt,
        source=None,
        invalid={why: ("…",) * len(names) for why, names in (entry.receipt.invalid or {}).items()},
        retry_ids=None,
        truncated_ids=None,
        errors=None,
        error_examples=None,
    )
    return msgspec.structs.replace(entry, receipt=receipt)


def _session() -> Any:
    from airflow.utils.session import create_session

    return create_session(scoped=False)


def _mark(session: Any) -> Any:
    """Return what changes when receipts come or go; and each minute, for the clocks of two servers may differ."""
    from airflow.models.xcom import XComModel as Xcom

    wanted = select(func.count(), func.max(Xcom.timestamp), func.sum(Xcom.dag_run_id)).where(Xcom.key == XCOM_KEY)
    return *session.execute(wanted).one(), time.monotonic() // _LOOK_AGAIN


def _places(session: Any, total: int) -> dict[Place, datetime]:
    from airflow.models.xcom import XComModel as Xcom

    wanted = select(Xcom.dag_run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp).where(Xcom.key == XCOM_KEY)
    if total > MOST_XCOMS:
        wanted = wanted.order_by(Xcom.timestamp.desc()).limit(MOST_XCOMS)
    return {(run, task_id, index): at for run, task_id, index, at in session.execute(wanted)}


def _rows(session: Any, *, since: datetime | None = None, run: Run | None = None) -> Iterator[tuple[Place, Any]]:
    """Read XComs with their values as text: Airflow would make objects of them, which are not wanted."""
    from airflow.models.xcom import XComModel as Xcom

    columns = (Xcom.dag_run_id, Xcom.dag_id, Xcom.run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp)
    value = cast(Xcom.value, Text)
    length = func.length(value)
    bounded = case((length <= LONGEST, value), else_=None)
    wanted = select(*columns, length.label("length"), bounded.label("value")).where(Xcom.key == XCOM_KEY)
    if since is not None:
        wanted = wanted.where(Xcom.timestamp >= since)
    if run is not None:
        wanted = wanted.where(Xcom.dag_id == run[0], Xcom.run_id == run[1])
    for row in session.execute(wanted.execution_options(yield_per=1_000)):
        yield (row.dag_run_id, row.task_id, row.map_index), row
