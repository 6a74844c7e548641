"""Keeps batches and their requests."""

import sqlite3
from collections.abc import Iterable, Iterator

from msgspec import Struct

from airflow_provider_claude_batch.emulator import marked
from airflow_provider_claude_batch.emulator.batch import RESULT_TYPES, Batch
from airflow_provider_claude_batch.emulator.chance import MAX_PLACE, new_id
from airflow_provider_claude_batch.emulator.clock import Clock
from airflow_provider_claude_batch.emulator.database import Database
from airflow_provider_claude_batch.emulator.errors import no_such_batch
from airflow_provider_claude_batch.emulator.outcome import Fate
from airflow_provider_claude_batch.emulator.page import PageQuery
from airflow_provider_claude_batch.emulator.prefix import Prefix
from airflow_provider_claude_batch.emulator.settings import DAY

# requests.id is the batch's number and the request's ordinal in one: submission order without another index.
ORDINALS = 1 << 20
PAGE = 200
WHOLE_SQL = "SELECT * FROM requests LEFT JOIN marked USING (batch, place) WHERE id = ?"
FORGET_SQL = "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE id >= ? AND id < ? LIMIT 2000)"
PAGE_SQL = "SELECT * FROM batches WHERE workspace = ? AND position > ? AND position < ? AND NOT deleted"


class Row(Struct, frozen=True):
    """One submitted request with what becomes of it."""

    custom_id: str
    place: int
    fate: Fate
    body: bytes
    prefixes: list[Prefix]


class Draft(Struct, frozen=True):
    """A batch that is still being received."""

    number: int
    ordinal: int
    id: str
    workspace: str


class End(Struct, frozen=True):
    """How a batch will end: so many requests finished, the rest left over, at a moment."""

    requests: int
    finished: int
    leftover: str
    ends_at: float


class Store:
    """The batches of all workspaces."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def open(self, workspace: str) -> Draft:
        """Begin a batch that nobody sees before it is accepted."""
        batch_id = new_id("msgbatch_")
        with self._database.writing() as connection:
            (ordinal,) = connection.execute("SELECT COUNT(*) FROM batches WHERE workspace = ?", (workspace,)).fetchone()
            number = connection.execute(
                "INSERT INTO batches (id, workspace, ordinal) VALUES (?, ?, ?)", (batch_id, workspace, ordinal)
            ).lastrowid
        return Draft(number or 0, ordinal, batch_id, workspace)

    def add(self, draft: Draft, rows: list[Row], first: int) -> None:
        values = (
            (draft.number * ORDINALS + ordinal, draft.number, row.place, row.custom_id, *row.fate.told(), row.body)
            for ordinal, row in enumerate(rows, first)
        )
        with self._database.writing() as connection:
            connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            marked.insert(connection, draft.number, draft.workspace, ((row.place, row.prefixes) for row in rows))

    def discard(self, draft: Draft) -> None:
        self._forget_requests(draft.number)
        with self._database.writing() as connection:
            connection.execute("DELETE FROM batches WHERE number = ?", (draft.number,))
            marked.forget(connection, draft.number)

    def accept(self, draft: Draft, requests: int, duration: float) -> Batch:
        """Make the batch visible and settle how it will end; what is not done after 24 hours expires."""
        with self._database.writing() as connection:
            now = self._clock.now()
            connection.execute(
                "UPDATE batches SET position = (SELECT COALESCE(MAX(position), 0) + 1 FROM batches), requests = ?,"
                " created_at = ?, duration = ? WHERE number = ?",
                (requests, now, duration, draft.number),
            )
            marked.schedule(connection, draft.number, requests, now, duration)
            finished = requests if duration <= DAY else int(requests * DAY / duration)
            _settle(connection, draft.number, End(requests, finished, "expired", now + min(duration, DAY)))
        return self.find(draft.workspace, draft.id)

    def cancel(self, batch: Batch, now: float, end: End) -> None:
        """Let the batch end otherwise than it would have, unless another cancel came first."""
        with self._database.writing() as connection:
            first = connection.execute(
                "UPDATE batches SET cancel_initiated_at = ? WHERE number = ? AND cancel_initiated_at IS NULL",
                (now, batch.number),
            ).rowcount
            if first:
                _settle(connection, batch.number, end)

    def delete(self, batch: Batch) -> None:
        # The row stays as a tombstone, so that a list goes on from its id and ordinals do not repeat.
        with self._database.writing() as connection:
            connection.execute("UPDATE batches SET deleted = 1 WHERE number = ?", (batch.number,))
            marked.forget(connection, batch.number)
        self._forget_requests(batch.number)

    def find(self, workspace: str | None, batch_id: str) -> Batch:
        """Find a batch of a workspace, or of any."""
        row = self._rows(
            "SELECT * FROM batches WHERE id = ? AND workspace = COALESCE(?, workspace) AND position AND NOT deleted",
            (batch_id, workspace),
        ).fetchone()
        if row is None:
            raise no_such_batch(batch_id)
        return Batch.of(row)

    def page(self, workspace: str, query: PageQuery) -> tuple[list[Batch], bool]:
        """List batches, newest first, and say whether there are more in the direction asked for."""
        older = self._position(workspace, query.after_id, 1 << 62)
        newer = self._position(workspace, query.before_id, 0)
        order = "ASC" if query.backwards else "DESC"
        rows = self._rows(
            f"{PAGE_SQL} ORDER BY position {order} LIMIT ?",
            (workspace, newer, older, query.limit + 1),
        ).fetchall()
        batches = [Batch.of(row) for row in rows[: query.limit]]
        return batches[::-1] if query.backwards else batches, len(rows) > query.limit

    def rows_by_place(self, batch: Batch) -> Iterator[sqlite3.Row]:
        """Read the requests in the order in which they are worked off."""
        after = -1
        while page := self._rows(
            "SELECT id, place FROM requests WHERE batch = ? AND place > ? ORDER BY place LIMIT ?",
            (batch.number, after, PAGE),
        ).fetchall():
            yield from self._whole(page)
            after = page[-1]["place"]

    def rows_as_submitted(self, batch: Batch) -> Iterator[sqlite3.Row]:
        """Read the requests in the order in which they came."""
        after, end = batch.number * ORDINALS - 1, (batch.number + 1) * ORDINALS
        while page := self._rows(
            "SELECT id FROM requests WHERE id > ? AND id < ? ORDER BY id LIMIT ?", (after, end, PAGE)
        ).fetchall():
            yield from self._whole(page)
            after = page[-1]["id"]

    def _whole(self, page: list[sqlite3.Row]) -> Iterator[sqlite3.Row]:
        # One at a time, since a request may be megabytes large.
        for row in page:
            yield from self._rows(WHOLE_SQL, (row["id"],)).fetchall()

    def _forget_requests(self, number: int) -> None:
        # In pieces, so that other writers get their turn in between.
        bounds, gone = (number * ORDINALS, (number + 1) * ORDINALS), 1
        while gone:
            with self._database.writing() as connection:
                gone = connection.execute(FORGET_SQL, bounds).rowcount

    def _position(self, workspace: str, batch_id: str | None, otherwise: int) -> int:
        if batch_id is None:
            return otherwise
        row = self._rows(
            "SELECT position FROM batches WHERE id = ? AND workspace = ? AND position", (batch_id, workspace)
        ).fetchone()
        if row is None:
            raise no_such_batch(batch_id)
        return int(row["position"])

    def _rows(self, sql: str, values: Iterable[object]) -> sqlite3.Cursor:
        return self._database.reader().execute(sql, tuple(values))


def _settle(connection: sqlite3.Connection, number: int, end: End) -> None:
    cutoff = _cutoff(connection, number, end)
    marked.cut_off(connection, number, cutoff, end.ends_at)
    counts = dict.fromkeys(RESULT_TYPES, 0)
    counts |= connection.execute(
        "SELECT status, COUNT(*) FROM requests WHERE batch = ? AND place <= ? GROUP BY status", (number, cutoff)
    ).fetchall()
    counts[end.leftover] += end.requests - end.finished
    connection.execute(
        "UPDATE batches SET cutoff = ?, leftover = ?, ends_at = ?, succeeded = ?, errored = ?, canceled = ?,"
        " expired = ? WHERE number = ?",
        (cutoff, end.leftover, end.ends_at, *(counts[name] for name in RESULT_TYPES), number),
    )


def _cutoff(connection: sqlite3.Connection, number: int, end: End) -> int:
    """Find the place up to which rows are finished."""
    if end.finished >= end.requests:
        return MAX_PLACE
    if end.finished <= 0:
        return -1
    (place,) = connection.execute(
        "SELECT place FROM requests WHERE batch = ? ORDER BY place LIMIT 1 OFFSET ?", (number, end.finished - 1)
    ).fetchone()
    return int(place)
