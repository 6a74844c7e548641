"""Queue tables: what was queued in PostgreSQL or SQLite, and which task instance has claimed it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.query import ROWS_AT_ONCE
from airflow_provider_claude_batch.queue_session import Session, open_session
from airflow_provider_claude_batch.request import encode
from airflow_provider_claude_batch.writers.table import Table

_UNLIMITED = 2**62
_NAMED_OWNERS = 10

_PUT = """INSERT INTO {table} (custom_id, params, queued_at) VALUES (?, ?, {now})
    ON CONFLICT (custom_id) WHERE claimed_at IS NULL DO UPDATE SET params = excluded.params"""
# A put that waited for a claim to end may come after a newer id: what is put last has to have the highest one.
_PUT_LAST = """UPDATE {table} SET id = {next_id} WHERE claimed_at IS NULL AND custom_id IN ({listed})
    AND id < (SELECT max(id) FROM {table} AS other WHERE other.custom_id = {table}.custom_id)"""
_ADOPT = "UPDATE {table} SET deployment = ? WHERE {place} AND deployment IS NULL"
_OWNS_ANY = "SELECT 1 FROM {table} WHERE {own} LIMIT 1"
_SUBMISSION = "SELECT submission FROM {table} WHERE {own} AND submission IS NOT NULL LIMIT 1"
_CLAIM = """UPDATE {table} SET dag_id = ?, run_id = ?, task_id = ?, map_index = ?, deployment = ?, claimed_at = {now}
    WHERE id IN (
        WITH oldest AS (SELECT id FROM {table} WHERE claimed_at IS NULL ORDER BY id LIMIT ? {skip_locked})
        SELECT id FROM oldest)"""
_PAGE = "SELECT id, custom_id, params FROM {table} WHERE {own} AND id > ? ORDER BY id LIMIT ?"
_BEGIN = "UPDATE {table} SET submission = ?, deployment = ? WHERE {own} AND submission IS NULL"
_SETTLE = """UPDATE {table} SET submission = ?, deployment = ?, submitted_at = {now}
    WHERE {own} AND (submitted_at IS NULL OR submission <> ?)"""
_HOLDERS = "SELECT DISTINCT deployment FROM {table} WHERE {place} AND submitted_at IS NULL AND deployment IS NOT NULL"
_DROP_OLDER = """DELETE FROM {table} WHERE {own} AND submitted_at IS NULL
    AND id < (SELECT max(id) FROM {table} AS other WHERE other.custom_id = {table}.custom_id)"""
# Only an earlier version let an older request wait again while a newer one was claimed.
_DROP_WAITING = """DELETE FROM {table} WHERE claimed_at IS NULL
    AND custom_id IN (SELECT custom_id FROM {table} WHERE {own} AND submitted_at IS NULL)"""
_RELEASE = """UPDATE {table} SET dag_id = NULL, run_id = NULL, task_id = NULL, map_index = NULL, deployment = NULL,
    claimed_at = NULL, submission = NULL WHERE {own} AND submitted_at IS NULL"""
_WAITING = "SELECT count(*) FROM {table} WHERE claimed_at IS NULL"
_STALE = """SELECT dag_id, run_id, task_id, map_index, deployment, count(*) FROM {table}
    WHERE submitted_at IS NULL AND claimed_at < {day_ago}
    GROUP BY dag_id, run_id, task_id, map_index, deployment ORDER BY min(claimed_at) LIMIT ?"""
_FIND = """SELECT custom_id, queued_at, dag_id, run_id, task_id, map_index, claimed_at, submission, submitted_at,
    {deployment} FROM {table} WHERE custom_id = ? ORDER BY id DESC"""


Place = tuple[str, str, str, int]


class Owner(NamedTuple):
    """The task instance that has claimed requests."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


class Stale(NamedTuple):
    """How many requests a task instance claimed more than a day ago, and in which Airflow it runs, if that is known."""

    owner: Owner
    deployment: str | None
    requests: int


class Released(NamedTuple):
    """How many requests wait again, and how many were left out because they had been put again since."""

    waiting: int
    replaced: int


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
    deployment: str | None = None

    @property
    def state(self) -> Literal["waiting", "claimed", "submitted"]:
        if self.submitted_at is not None:
            return "submitted"
        return "waiting" if self.owner is None else "claimed"


class QueueTable:
    """One table of queued requests; each call is a connection and a transaction of its own.

    What is claimed belongs to a task instance of one Airflow, the deployment. A person who releases may name none.
    """

    def __init__(self, conn_id: str, table: str, deployment: str | None = None) -> None:
        self._conn_id = conn_id
        self._table = Table.parse(table)
        self._deployment = deployment

    def put(self, requests: Sequence[tuple[str, str]]) -> None:
        """Add requests, each its id and its params as JSON; one that still waits under the same id is replaced."""
        with self._open() as session, session.transaction():
            if len(requests) > 1:
                session.lock("put")  # two that replace the same ids in another order would wait for each other
            session.change_many(_PUT, requests)
            session.change(_PUT_LAST, encode([custom_id for custom_id, _ in requests]).decode())

    def claim(self, place: Place, limit: int | None) -> int | None:
        """Claim what waits, oldest first, and return how much; None where the owner has claimed before."""
        own = self._own(place)
        with self._open_claims() as session, session.transaction():
            session.lock(f"claim {tuple(place)}")
            session.change(_ADOPT, self._deployment, *place)
            if session.query(_OWNS_ANY, *own):
                return None
            return session.change(_CLAIM, *own, _UNLIMITED if limit is None else limit)

    def read(self, place: Place) -> Iterator[tuple[str, str]]:
        """Read what an owner has claimed, submitted or not, always in the same order, some rows at a time."""
        last = 0
        with self._open_claims() as session:
            while rows := session.query(_PAGE, *self._own(place), last, ROWS_AT_ONCE):
                last = rows[-1][0]
                for _, custom_id, params in rows:
                    yield custom_id, params

    def submission(self, place: Place) -> str | None:
        """Name the submission of what an owner has claimed, be it only begun."""
        with self._open_claims() as session:
            return next((str(found) for (found,) in session.query(_SUBMISSION, *self._own(place))), None)

    def begin(self, place: Place, submission: str) -> int:
        """Note, before the first of it is sent, which submission has what an owner has claimed."""
        with self._open_claims() as session:
            return session.change(_BEGIN, submission, self._deployment, *self._own(place))

    def settle(self, place: Place, submission: str) -> int:
        """Mark what an owner has claimed as submitted."""
        with self._open_claims() as session:
            return session.change(_SETTLE, submission, self._deployment, *self._own(place), submission)

    def release(self, place: Place) -> Released:
        """Let wait again what was claimed and not submitted, but for what was put again since then."""
        with self._open_claims() as session, session.transaction():
            session.lock_table()
            deployment = self._deployment if self._deployment is not None else self._only_holder(session, place)
            own = *place, deployment
            replaced = session.change(_DROP_OLDER, *own)
            session.change(_DROP_WAITING, *own)
            return Released(session.change(_RELEASE, *own), replaced)

    def waiting(self) -> int:
        """Count what nobody has claimed."""
        with self._open() as session:
            return int(session.query(_WAITING)[0][0])

    def stale(self) -> list[Stale]:
        """Name owners that claimed more than a day ago and submitted nothing since, and how much they hold."""
        with self._open_claims() as session:
            return [Stale(Owner(*found[:4]), *found[4:]) for found in session.query(_STALE, _NAMED_OWNERS)]

    def find(self, custom_id: str) -> list[Item]:
        """Return everything that was queued under an id, the newest first."""
        with self._open() as session:
            return [_item(row) for row in session.query(_FIND, custom_id)]

    def _own(self, place: Place) -> tuple[Any, ...]:
        return *place, self._deployment

    def _only_holder(self, session: Session, place: Place) -> str:
        """Tell which Airflow claimed at a place: two that share a queue may have a run of the same name."""
        holders = sorted(str(deployment) for (deployment,) in session.query(_HOLDERS, *place))
        if len(holders) > 1:
            raise Misconfigured(
                f"Nothing was released: several Airflows have claimed requests of the queue {self._table} under this "
                f"name. Say which, as deployment=: {', '.join(map(repr, holders))}."
            )
        return holders[0] if holders else ""

    def _open(self) -> AbstractContextManager[Session]:
        return open_session(self._conn_id, self._table)

    @contextmanager
    def _open_claims(self) -> Iterator[Session]:
        """Open a session that reads or changes what was claimed."""
        with self._open() as session:
            session.need_deployment()
            yield session


def _item(row: tuple[Any, ...]) -> Item:
    custom_id, queued_at, *owner, claimed_at, submission, submitted_at, deployment = row
    return Item(
        custom_id=custom_id,
        queued_at=_moment(queued_at) or datetime.min.replace(tzinfo=UTC),
        owner=None if claimed_at is None else Owner(*owner),
        claimed_at=_moment(claimed_at),
        submission=submission,
        submitted_at=_moment(submitted_at),
        deployment=deployment,
    )


def _moment(value: Any) -> datetime | None:
    """Read a moment: SQLite keeps them as texts, in UTC."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return None if value is None else value.astimezone(UTC)
