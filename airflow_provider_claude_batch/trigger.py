"""The trigger: waits in the triggerer, without a worker, until batches have ended."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_claude_batch import connection
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.receipt import as_json
from airflow_provider_claude_batch.watch import Ending, Look, Wait, Watch, Why

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import AsyncClient

FIRST_LOOK, SLOWEST_LOOK = 5.0, 60.0


class ClaudeBatchTrigger(BaseTrigger):
    """Wait until all batches have ended, or the deadline has passed; everything it needs is in its kwargs."""

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
        async with await connection.open_async_client(self.conn_id) as client:
            ending = await self._wait(watch, client)
        yield TriggerEvent(event_of(ending, watch))  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the batches, where the Dag's author asked for it."""
        if self.cancel_on_kill:
            async with await connection.open_async_client(self.conn_id) as client:
                for batch_id in self.batch_ids:
                    await _look(batch_id, client, cancel=True)

    async def _wait(self, watch: Watch, client: "AsyncClient") -> Ending:
        while True:
            looks = {batch_id: await _look(batch_id, client, cancel=watch.cancelling) for batch_id in watch.waiting}
            match watch.judge(looks, datetime.now(UTC)):
                case Ending() as ending:
                    return ending
                case Wait(seconds, trouble):
                    if trouble:
                        self.log.warning("%s Asking again.", trouble)
                    await asyncio.sleep(seconds)


class ClaudeBatchPause(BaseTrigger):
    """Wait until a moment, or until one of some batches has ended; then the submission goes on on a worker."""

    def __init__(
        self, *, until: str, batch_ids: list[str], conn_id: str, memo: dict[str, Any] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        if self.batch_ids:
            async with await connection.open_async_client(self.conn_id) as client:
                await self._wait(client)
        else:
            await asyncio.sleep(self._seconds_left())
        yield TriggerEvent({"memo": self.memo})  # type: ignore[no-untyped-call]

    async def _wait(self, client: "AsyncClient") -> None:
        interval = FIRST_LOOK
        while (left := self._seconds_left()) > 0:
            await asyncio.sleep(min(interval, left))
            interval = min(interval * 2, SLOWEST_LOOK)
            for batch_id in self.batch_ids:
                look = await _look(batch_id, client, cancel=False)
                if isinstance(look, Batch) and look.ended:
                    return

    def _seconds_left(self) -> float:
        return max(0.0, (datetime.fromisoformat(self.until) - datetime.now(UTC)).total_seconds())


def event_of(ending: Ending, watch: Watch) -> dict[str, Any]:
    """Write an ending, and all that was seen, as an event."""
    batches = list(watch.batches.values())
    event: dict[str, Any] = as_json({"why": ending.why, "message": ending.message, "batches": batches})
    return event


def read_event(event: dict[str, Any]) -> tuple[Ending, dict[str, Batch]]:
    """Read an event back."""
    batches = msgspec.convert(event["batches"], list[Batch])
    return Ending(Why(event["why"]), event["message"]), {batch.id: batch for batch in batches}


async def _look(batch_id: str, client: "AsyncClient", *, cancel: bool) -> Look:
    try:
        batch = await client.look(batch_id)
        return await client.cancel(batch_id) if cancel and batch.processing_status == "in_progress" else batch
    except ClaudeBatchError as error:
        return error
