"""The archive: the receipts that lie in Airflow's XComs, each read once and remembered as long as it lies there."""

import time
from collections.abc import Iterator
from datetime import datetime
from threading import Lock
from typing import Any

import msgspec
from sqlalchemy import Text, cast, func, select

from airflow_provider_claude_batch.entry import Entry
from airflow_provider_claude_batch.page.elsewhere import Elsewhere
from airflow_provider_claude_batch.page.stored import LONGEST, decode, is_of_its_time
from airflow_provider_claude_batch.receipt import XCOM_KEY, Receipt, replace
from airflow_provider_claude_batch.submission import Submission, gather

MOST_XCOMS = 200_000
_VIEWS = 8
_LOOK_AGAIN, _PATIENCE = 60.0, 5.0

Place = tuple[int, str, int]
Found = dict[Place, datetime]


class Snapshot(msgspec.Struct, frozen=True):
    """All entries at a moment, and whether there are more than are remembered."""

    version: int
    entries: tuple[Entry, ...]
    is_capped: bool


class Archive:
    """Remember entries, and read only those that are new: three queries at most, however many there are."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._mark: Any = None
        self._known: dict[Place, tuple[datetime, tuple[Entry, ...]]] = {}
        self._away: dict[Place, tuple[Any, str]] = {}
        self._elsewhere = Elsewhere()
        self._snapshot = Snapshot(0, (), is_capped=False)
        self._gathered: dict[frozenset[str], tuple[int, list[Submission]]] = {}

    def submissions(self, dag_ids: frozenset[str]) -> tuple[list[Submission], bool]:
        """Return what lies in these Dags, newest first, and whether some are left out."""
        with self._lock:
            self._refresh()
            away = sorted(self._away.values(), key=lambda kept: kept[0].timestamp, reverse=True)
        if away:
            self._elsewhere.ask(reference for _, reference in away)
        with self._lock:
            self._take_what_was_away()
            return self._gather(dag_ids), self._snapshot.is_capped

    def read(self, dag_id: str, run_id: str) -> list[Entry]:
        """Read the receipts of one run anew, with everything that they say."""
        with _session() as session:
            values = [(row, decode(row.value)) for _, row in _rows(session, run=(dag_id, run_id))]
        away = self._elsewhere.read((value for _, value in values if isinstance(value, str)), _PATIENCE)
        return [
            entry
            for row, value in values
            for entry in _entries(row, away.get(value, ()) if isinstance(value, str) else value)
        ]

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
        self._known = {place: old for place, old in self._known.items() if found.get(place) == old[0]}
        self._away = {place: old for place, old in self._away.items() if found.get(place) == old[0].timestamp}
        new = found.keys() - self._known.keys() - self._away.keys()
        if new:
            for place, row in _rows(session, since=min(found[place] for place in new)):
                self._remember(place, row, decode(row.value))
        for place in new - self._known.keys() - self._away.keys():
            self._known[place] = found[place], ()  # too long to be ours
        if new or len(self._known) != before:
            self._renew()

    def _remember(self, place: Place, row: Any, value: "tuple[Receipt, ...] | str") -> None:
        self._away.pop(place, None)
        if isinstance(value, str):
            self._away[place] = row, value
        else:
            self._known[place] = row.timestamp, tuple(_slim(entry) for entry in _entries(row, value))

    def _take_what_was_away(self) -> None:
        read = [(place, row, self._elsewhere.take(reference)) for place, (row, reference) in self._away.items()]
        for place, row, receipts in read:
            if receipts is not None:
                self._remember(place, row, receipts)
        if any(receipts is not None for _, _, receipts in read):
            self._renew()

    def _renew(self) -> None:
        entries = tuple(entry for _, of_one in self._known.values() for entry in of_one)
        is_capped = len(self._known) >= MOST_XCOMS or bool(self._away)
        self._snapshot = Snapshot(self._snapshot.version + 1, entries, is_capped=is_capped)


def _entries(row: Any, receipts: tuple[Receipt, ...]) -> list[Entry]:
    """Say where receipts lie."""
    return [
        Entry(receipt, row.dag_id, row.run_id, row.task_id, row.map_index, row.timestamp)
        for receipt in receipts
        if is_of_its_time(receipt, row.timestamp)
    ]


def _slim(entry: Entry) -> Entry:
    """Leave out what only the page of one submission shows."""
    receipt = replace(
        entry.receipt,
        source=None,
        invalid={why: ("",) * len(names) for why, names in (entry.receipt.invalid or {}).items()},
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


def _places(session: Any, total: int) -> Found:
    from airflow.models.xcom import XComModel as Xcom

    wanted = select(Xcom.dag_run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp).where(Xcom.key == XCOM_KEY)
    if total > MOST_XCOMS:
        wanted = wanted.order_by(Xcom.timestamp.desc()).limit(MOST_XCOMS)
    return {(run, task_id, index): at for run, task_id, index, at in session.execute(wanted)}


def _rows(
    session: Any, *, since: datetime | None = None, run: tuple[str, str] | None = None
) -> Iterator[tuple[Place, Any]]:
    """Read XComs with their values as text: Airflow would make objects of them, which are not wanted."""
    from airflow.models.xcom import XComModel as Xcom

    columns = (Xcom.dag_run_id, Xcom.dag_id, Xcom.run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp)
    value = cast(Xcom.value, Text)
    wanted = select(*columns, value.label("value")).where(Xcom.key == XCOM_KEY, func.length(value) < LONGEST)
    if since is not None:
        wanted = wanted.where(Xcom.timestamp >= since)
    if run is not None:
        wanted = wanted.where(Xcom.dag_id == run[0], Xcom.run_id == run[1])
    for row in session.execute(wanted.execution_options(yield_per=1_000)):
        yield (row.dag_run_id, row.task_id, row.map_index), row
