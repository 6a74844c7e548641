"""Queue tables: what was queued in PostgreSQL or SQLite, and which task instance has claimed it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from airflow_provider_claude_batch.query import ROWS_AT_ONCE
from airflow_provider_claude_batch.queue_session import Session, open_session
from airflow_provider_claude_batch.writers.table import Table

_UNLIMITED = 2**62
_NAMED_OWNERS = 10

_PUT = """INSERT INTO {table} (custom_id, params, queued_at) VALUES (?, ?, {now})
    ON CONFLICT (custom_id) WHERE claimed_at IS NULL DO UPDATE SET params = excluded.params"""
_OWNS_ANY = "SELECT 1 FROM {table} WHERE {own} LIMIT 1"
_SUBMISSION = "SELECT submission FROM {table} WHERE {own} AND submission IS NOT NULL LIMIT 1"
_CLAIM = """UPDATE {table} SET dag_id = ?, run_id = ?, task_id = ?, map_index = ?, claimed_at = {now} WHERE id IN (
    WITH oldest AS (SELECT id FROM {table} WHERE claimed_at IS NULL ORDER BY id LIMIT ? {skip_locked})
    SELECT id FROM oldest)"""
_PAGE = "SELECT id, custom_id, params FROM {table} WHERE {own} AND id > ? ORDER BY id LIMIT ?"
_BEGIN = "UPDATE {table} SET submission = ? WHERE {own} AND submission IS NULL"
_SETTLE = """UPDATE {table} SET submission = ?, submitted_at = {now}
    WHERE {own} AND (submitted_at IS NULL OR submission <> ?)"""
_DROP_REPLACED = """DELETE FROM {table} WHERE {own} AND submitted_at IS NULL
    AND custom_id IN (SELECT custom_id FROM {table} WHERE claimed_at IS NULL)"""
_RELEASE = """UPDATE {table} SET dag_id = NULL, run_id = NULL, task_id = NULL, map_index = NULL, claimed_at = NULL,
    submission = NULL WHERE {own} AND submitted_at IS NULL"""
_WAITING = "SELECT count(*) FROM {table} WHERE claimed_at IS NULL"
_STALE = """SELECT dag_id, run_id, task_id, map_index, count(*) FROM {table}
    WHERE submitted_at IS NULL AND claimed_at < {day_ago}
    GROUP BY dag_id, run_id, task_id, map_index ORDER BY min(claimed_at) LIMIT ?"""
_FIND = """SELECT custom_id, queued_at, dag_id, run_id, task_id, map_index, claimed_at, submission, submitted_at
    FROM {table} WHERE custom_id = ? ORDER BY id DESC"""


Place = tuple[str, str, str, int]


class Owner(NamedTuple):
    """The task instance that has claimed requests."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


class Item(msgspec.Struct, frozen=True):
    """One request that was queued: it waits, or a task instance has claimed it, or it was submitted.

    What is claimed and has a submission is being sent, or was sent in part.
    """

    custom_id: str
    queued_at: datetime
    owner: Owner | None
    claimed_at: datetime | None
    submission: str | None
    submitted_at: datetime | None

    @property
    def state(self) -> Literal["waiting", "claimed", "submitted"]:
        if self.submitted_at is not None:
            return "submitted"
        return "waiting" if self.owner is None else "claimed"


class QueueTable:
    """One table of queued requests; each call is a connection and a transaction of its own."""

    def __init__(self, conn_id: str, table: str) -> None:
        self._conn_id = conn_id
        self._table = Table.parse(table)

    def put(self, requests: Sequence[tuple[str, str]]) -> None:
        """Add requests, each its id and its params as JSON; one that still waits under the same id is replaced."""
        with self._open() as session:
            if len(requests) == 1:
                session.change(_PUT, *requests[0])
                return
            with session.transaction():
                session.lock("put")  # two that replace the same ids in another order would wait for each other
                session.change_many(_PUT, requests)

    def claim(self, owner: Place, limit: int | None) -> int | None:
        """Claim what waits, oldest first, and return how much; None where the owner has claimed before."""
        with self._open() as session, session.transaction():
            session.lock(f"claim {tuple(owner)}")
            if session.query(_OWNS_ANY, *owner):
                return None
            return session.change(_CLAIM, *owner, _UNLIMITED if limit is None else limit)

    def read(self, owner: Place) -> Iterator[tuple[str, str]]:
        """Read what an owner has claimed, submitted or not, always in the same order, some rows at a time."""
        last = 0
        with self._open() as session:
            while rows := session.query(_PAGE, *owner, last, ROWS_AT_ONCE):
                last = rows[-1][0]
                for _, custom_id, params in rows:
                    yield custom_id, params

    def submission(self, owner: Place) -> str | None:
        """Name the submission of what an owner has claimed, be it only begun."""
        with self._open() as session:
            return next((str(found) for (found,) in session.query(_SUBMISSION, *owner)), None)

    def begin(self, owner: Place, submission: str) -> int:
        """Note, before the first of it is sent, which submission has what an owner has claimed."""
        with self._open() as session:
            return session.change(_BEGIN, submission, *owner)

    def settle(self, owner: Place, submission: str) -> int:
        """Mark what an owner has claimed as submitted."""
        with self._open() as session:
            return session.change(_SETTLE, submission, *owner, submission)

    def release(self, owner: Place) -> int:
        """Let wait again what was claimed and not submitted; what was put anew since then stands in its place."""
        with self._open() as session, session.transaction():
            session.lock_table()
            session.change(_DROP_REPLACED, *owner)
            return session.change(_RELEASE, *owner)

    def waiting(self) -> int:
        """Count what nobody has claimed."""
        with self._open() as session:
            return int(session.query(_WAITING)[0][0])

    def stale(self) -> list[tuple[Owner, int]]:
        """Name owners that claimed more than a day ago and submitted nothing since, and how much they hold."""
        with self._open() as session:
            return [(Owner(*found[:4]), found[4]) for found in session.query(_STALE, _NAMED_OWNERS)]

    def find(self, custom_id: str) -> list[Item]:
        """Return everything that was queued under an id, the newest first."""
        with self._open() as session:
            return [_item(row) for row in session.query(_FIND, custom_id)]

    def _open(self) -> AbstractContextManager[Session]:
        return open_session(self._conn_id, self._table)


def _item(row: tuple[Any, ...]) -> Item:
    custom_id, queued_at, *owner, claimed_at, submission, submitted_at = row
    return Item(
        custom_id=custom_id,
        queued_at=_moment(queued_at) or datetime.min.replace(tzinfo=UTC),
        owner=None if claimed_at is None else Owner(*owner),
        claimed_at=_moment(claimed_at),
        submission=submission,
        submitted_at=_moment(submitted_at),
    )


def _moment(value: Any) -> datetime | None:
    """Read a moment: SQLite keeps them as texts, in UTC."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return None if value is None else value.astimezone(UTC)
