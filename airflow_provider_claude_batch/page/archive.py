"""The archive: the receipts that lie in Airflow's XComs, each read once and remembered as long as it lies there."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Lock
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
from sqlalchemy import Text, cast, func, select

from airflow_provider_claude_batch.receipt import XCOM_KEY, Receipt, replace
from airflow_provider_claude_batch.submission import Entry, Submission, gather

MOST_XCOMS = 200_000
_AT_ONCE, _PATIENCE = 64, 2.0
_LONGEST = 20_000_000
_VIEWS = 8
_YEARS = range(2000, 3000)

Place = tuple[int, str, int]
Found = dict[Place, datetime]

log = logging.getLogger(__name__)


class _Stored(Receipt, frozen=True, kw_only=True):
    """A receipt as it lies in an XCom."""

    v: Literal[1]


_decoder = msgspec.json.Decoder(_Stored | list[_Stored] | str)


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
        self._elsewhere: dict[Place, tuple[Any, str]] = {}
        self._snapshot = Snapshot(0, (), is_capped=False)
        self._gathered: dict[frozenset[str], tuple[int, list[Submission]]] = {}

    def submissions(self, dag_ids: frozenset[str]) -> tuple[list[Submission], bool]:
        """Return what lies in these Dags, newest first, and whether older submissions are left out."""
        with self._lock:
            snapshot = self._refreshed()
            known = frozenset(entry.dag_id for entry in snapshot.entries) & dag_ids
            version, submissions = self._gathered.get(known, (-1, []))
            if version != snapshot.version:
                submissions = gather((entry for entry in snapshot.entries if entry.dag_id in known), submissions)
                self._gathered[known] = snapshot.version, submissions
                while len(self._gathered) > _VIEWS:
                    self._gathered.pop(next(iter(self._gathered)))
        return submissions, snapshot.is_capped

    def _refreshed(self) -> Snapshot:
        with _session() as session:
            mark = _mark(session)
            if mark != self._mark:
                self._read_changes(session, mark[0])
                self._mark = mark
                self._take()
        if self._elsewhere and self._fetch():
            self._take()
        return self._snapshot

    def _read_changes(self, session: Any, total: int) -> None:
        found = _places(session, total)
        self._known = {place: old for place, old in self._known.items() if found.get(place) == old[0]}
        self._elsewhere = {place: old for place, old in self._elsewhere.items() if found.get(place) == old[0].timestamp}
        new = found.keys() - self._known.keys() - self._elsewhere.keys()
        if since := min((found[place] for place in new), default=None):
            for place, row in _rows(session, since):
                self._remember(place, row, decode(row.value))

    def _remember(self, place: Place, row: Any, value: "tuple[Receipt, ...] | str") -> None:
        if isinstance(value, str):
            self._elsewhere[place] = row, value
            return
        self._elsewhere.pop(place, None)
        entries = tuple(entry_of(receipt, row) for receipt in value)
        self._known[place] = row.timestamp, tuple(_slim(entry) for entry in entries)

    def _fetch(self) -> bool:
        """Read what an XCom backend keeps elsewhere, newest first, for a moment; the rest has its turn next time."""
        until = time.monotonic() + _PATIENCE
        waiting = sorted(self._elsewhere.items(), key=lambda item: item[1][0].timestamp, reverse=True)
        with ThreadPoolExecutor(8) as pool:
            for first in range(0, len(waiting), _AT_ONCE):
                part = waiting[first : first + _AT_ONCE]
                for (place, (row, _)), value in zip(part, pool.map(lambda item: fetch(item[1][1]), part), strict=True):
                    self._remember(place, row, value)
                if time.monotonic() > until:
                    break
        return True

    def _take(self) -> None:
        entries = tuple(entry for _, of_one in self._known.values() for entry in of_one)
        is_capped = len(self._known) >= MOST_XCOMS or bool(self._elsewhere)
        self._snapshot = Snapshot(self._snapshot.version + 1, entries, is_capped=is_capped)


def read_run(dag_id: str, run_id: str) -> list[Entry]:
    """Read the receipts of one run, with everything that they say."""
    with _session() as session:
        rows = [row for _, row in _rows(session, None, dag_id=dag_id, run_id=run_id)]
    values = [(row, decode(row.value)) for row in rows]
    receipts = [(row, fetch(value) if isinstance(value, str) else value) for row, value in values]
    return [entry_of(receipt, row) for row, of_row in receipts for receipt in of_row]


def entry_of(receipt: Receipt, row: Any) -> Entry:
    """Say where a receipt lies."""
    return Entry(receipt, row.dag_id, row.run_id, row.task_id, row.map_index, row.timestamp)


def decode(value: str | None) -> tuple[Receipt, ...] | str:
    """Read the JSON of an XCom: receipts, or where they lie; what is neither was pushed by somebody else."""
    if value is None or len(value) > _LONGEST:
        return ()
    try:
        found = _decoder.decode(value)
        if isinstance(found, str) and found[:1] in {"{", "["}:
            found = _decoder.decode(found)
    except (msgspec.DecodeError, RecursionError):
        return ()
    if isinstance(found, str):
        return found
    return tuple(receipt for receipt in (found if isinstance(found, list) else [found]) if _is_plausible(receipt))


def _is_plausible(receipt: Receipt) -> bool:
    """Refuse what would stop the page for everybody: any task may push what it likes, moments without a zone too."""
    of_parts = (moment for part in receipt.batches for moment in (part.created_at, part.ended_at, part.expires_at))
    moments = (receipt.submitted_at, receipt.logical_date, *of_parts)
    return all(moment is None or (moment.tzinfo and moment.year in _YEARS) for moment in moments)


def fetch(reference: str) -> tuple[Receipt, ...]:
    """Have the XCom backend read what it keeps elsewhere: as a best effort, for it may be anybody's code."""
    from airflow.sdk.execution_time.xcom import XCom

    try:
        value = XCom.deserialize_value(SimpleNamespace(value=reference))
        found = decode(msgspec.json.encode(value).decode())
    except Exception as error:  # noqa: BLE001 - an object that is gone, a store that is down: the page does without
        log.warning("An XCom that is kept elsewhere cannot be read: %s.", type(error).__name__)
        return ()
    return () if isinstance(found, str) else found


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
    """Return what changes whenever receipts come or go."""
    from airflow.models.xcom import XComModel as Xcom

    wanted = select(func.count(), func.max(Xcom.timestamp), func.sum(Xcom.dag_run_id)).where(Xcom.key == XCOM_KEY)
    return tuple(session.execute(wanted).one())


def _places(session: Any, total: int) -> Found:
    from airflow.models.xcom import XComModel as Xcom

    wanted = select(Xcom.dag_run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp).where(Xcom.key == XCOM_KEY)
    if total > MOST_XCOMS:
        wanted = wanted.order_by(Xcom.timestamp.desc()).limit(MOST_XCOMS)
    return {(run, task_id, index): at for run, task_id, index, at in session.execute(wanted)}


def _rows(session: Any, since: datetime | None, **where: str) -> Iterator[tuple[Place, Any]]:
    """Read XComs with their values as text: Airflow would make objects of them, which are not wanted."""
    from airflow.models.xcom import XComModel as Xcom

    columns = (Xcom.dag_run_id, Xcom.dag_id, Xcom.run_id, Xcom.task_id, Xcom.map_index, Xcom.timestamp)
    wanted = select(*columns, cast(Xcom.value, Text).label("value")).where(Xcom.key == XCOM_KEY).filter_by(**where)
    if since is not None:
        wanted = wanted.where(Xcom.timestamp >= since)
    for row in session.execute(wanted.execution_options(yield_per=1_000)):
        yield (row.dag_run_id, row.task_id, row.map_index), row
