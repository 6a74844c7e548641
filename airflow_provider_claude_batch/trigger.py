"""The trigger: waits in the triggerer, without a worker, until batches have ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_claude_batch import connection
from airflow_provider_claude_batch.arguments import check_moment
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.poller import seat_at_poller
from airflow_provider_claude_batch.receipt import as_json
from airflow_provider_claude_batch.watch import Ending, FirstEnded, Wait, Watch

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import AsyncClient


class ClaudeBatchTrigger(BaseTrigger):
    """Wait until all batches have ended, or the deadline has passed; everything it needs is in its kwargs.

    :param batch_ids: the batches to wait for.
    :param conn_id: the connection of type ``anthropic``.
    :param interval: seconds between two looks at first, 5 at least; they grow as batches age.
    :param deadline: until when to wait, in ISO 8601 with a time zone; by default until an hour after the API lets the
        batches expire.
    :param on_timeout: ``fail``, or ``cancel`` the batches and wait for their end.
    :param cancel_on_kill: cancel the batches when the trigger is killed.
    """

    def __init__(
        self,
        *,
        batch_ids: list[str],
        conn_id: str,
        interval: float,
        deadline: str | None = None,
        on_timeout: str = "fail",
        cancel_on_kill: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if deadline is not None:
            check_moment("deadline", deadline)
        self.batch_ids = batch_ids
        self.conn_id = conn_id
        self.interval = interval
        self.deadline = deadline
        self.on_timeout = on_timeout
        self.cancel_on_kill = cancel_on_kill

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Say how to build this trigger again, in another process."""
        names = ("batch_ids", "conn_id", "interval", "deadline", "on_timeout", "cancel_on_kill")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event that carries all that was seen."""
        cancel = self.on_timeout == "cancel"
        deadline = datetime.fromisoformat(self.deadline) if self.deadline else None
        watch = Watch(tuple(self.batch_ids), interval=self.interval, deadline=deadline, cancel_at_deadline=cancel)
        with seat_at_poller(self.conn_id, watch) as seat:
            while isinstance(heard := await seat.hear(), Wait):
                tell(self.log, heard)
        found = Finding(heard, watch.batches, seat.looks, datetime.now(UTC))
        yield TriggerEvent(found.to_event())  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the batches, where the Dag's author asked for it."""
        if self.cancel_on_kill:
            async with await connection.open_async_client(self.conn_id) as client:
                for batch_id in self.batch_ids:
                    await _cancel(batch_id, client)


class ClaudeBatchPause(BaseTrigger):
    """Wait until a moment, or until one of some batches has ended; then the submission goes on on a worker."""

    def __init__(self, *, until: str, batch_ids: list[str], conn_id: str, memo: dict[str, Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_moment("until", until)
        self.until = until
        self.batch_ids = batch_ids
        self.conn_id = conn_id
        self.memo = memo

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Say how to build this trigger again, in another process."""
        names = ("until", "batch_ids", "conn_id", "memo")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and hand back what the submission has to remember."""
        until = datetime.fromisoformat(self.until)
        if self.batch_ids:
            with seat_at_poller(self.conn_id, FirstEnded(tuple(self.batch_ids), until)) as seat:
                while isinstance(await seat.hear(), Wait):
                    pass
        else:
            await asyncio.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))
        yield TriggerEvent({"memo": self.memo})  # type: ignore[no-untyped-call]


class Finding(msgspec.Struct, frozen=True):
    """What a wait found: how it ended, how each batch was seen, after how many looks, and when."""

    ending: Ending
    batches: dict[str, Batch]
    looks: int
    noticed_at: datetime

    def to_event(self) -> dict[str, Any]:
        """Write it as the event of a trigger."""
        event: dict[str, Any] = as_json(self)
        return event

    @classmethod
    def of_event(cls, event: dict[str, Any]) -> "Finding":
        """Read an event back."""
        return msgspec.convert(event, cls)


def tell(log: Any, heard: Wait) -> None:
    """Write what is new into the task's log, once."""
    if heard.trouble:
        log.warning("%s Asking again.", heard.trouble)
    if heard.news:
        log.info("%s", heard.news)


async def _cancel(batch_id: str, client: "AsyncClient") -> None:
    with suppress(ClaudeBatchError):
        if not (await client.look(batch_id)).ended:
            await client.cancel(batch_id)
