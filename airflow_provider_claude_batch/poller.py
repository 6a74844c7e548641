"""The poller: one for each event loop and connection asks for every batch that the triggers there wait for."""

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from airflow_provider_claude_batch import connection, metrics
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ApiRefused, ClaudeBatchError
from airflow_provider_claude_batch.roll_call import Answer, Ask, AskForPage, Roll
from airflow_provider_claude_batch.watch import Ending, Look, Wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_claude_batch.client import AsyncClient

FIRST_TICK = 1.0
_JUDGED_AT_ONCE = 50

_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, "Poller"]] = WeakKeyDictionary()


class Judge(Protocol):
    """What decides, look after look, whether a wait is over."""

    interval: float
    cancelling: bool
    batches: dict[str, Batch]

    @property
    def waiting(self) -> tuple[str, ...]: ...

    def judge(self, looks: "Mapping[str, Look]", now: datetime) -> Ending | Wait: ...


class Seat:
    """One trigger's place at a poller: what it waits for, and what it hears."""

    def __init__(self, watch: Judge) -> None:
        self.watch = watch
        self.looks = 0
        self._heard: asyncio.Queue[Wait | Ending | BaseException] = asyncio.Queue()

    async def hear(self) -> Wait | Ending:
        """Wait for the next verdict that is worth a word."""
        heard = await self._heard.get()
        if isinstance(heard, BaseException):
            raise heard
        return heard

    def tell(self, heard: Wait | Ending | BaseException) -> None:
        """Let the trigger hear something."""
        self._heard.put_nowait(heard)

    def judge(self, looks: "Mapping[str, Look]", now: datetime) -> float | None:
        """Have the watch judge; return after how many seconds to look again, or None where the wait is over."""
        self.looks += 1
        seen = {batch_id: looks[batch_id] for batch_id in self.watch.waiting if batch_id in looks}
        verdict = self.watch.judge(seen, now)
        if isinstance(verdict, Ending):
            self.tell(verdict)
            return None
        if verdict.trouble or verdict.news:
            self.tell(verdict)
        return verdict.seconds


class Poller:
    """Ask in one go for what all seats wait for; the first one in starts it, the last one out stops it."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._places: set[Seat] = set()  # who is here
        self._seats: set[Seat] = set()  # and of them, who still waits
        self._roll = Roll()
        self._client: AsyncClient | None = None
        self._sooner = asyncio.Event()
        self._calls = 0
        # A context of its own: what is logged here belongs to no one task.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    def sit(self, seat: Seat) -> None:
        """Come in."""
        self._places.add(seat)
        self._seats.add(seat)
        self._sooner.set()

    def leave(self, seat: Seat) -> None:
        """Get up; the last one out turns off the light, and who comes now finds a new poller."""
        self._places.discard(seat)
        self._seats.discard(seat)
        if not self._places:
            self._close_the_door()
            self._task.cancel()

    def _close_the_door(self) -> None:
        pollers = _pollers.get(asyncio.get_running_loop(), {})
        if pollers.get(self._conn_id) is self:
            del pollers[self._conn_id]

    async def _run(self) -> None:
        try:
            seconds = FIRST_TICK
            while True:
                await self._sleep(seconds)
                seconds = await self._tick()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
            for seat in self._seats:
                seat.tell(error)
        finally:
            self._close_the_door()
            if self._client is not None:
                await self._client.close()

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next tick; who joins meanwhile waits no longer than its own interval."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while True:
            soonest = min((seat.watch.interval for seat in self._seats if not seat.looks), default=seconds)
            due = min(due, loop.time() + soonest)
            self._sooner.clear()
            try:
                await asyncio.wait_for(self._sooner.wait(), due - loop.time())
            except TimeoutError:
                return

    async def _tick(self) -> float:
        seats, self._calls = list(self._seats), 0
        looks = await self._look(seats)
        errors = sum(not isinstance(look, Batch) for look in looks.values())
        metrics.count_poll(self._conn_id, waiting=len(looks), calls=self._calls, errors=errors)
        now, seconds = datetime.now(UTC), []
        for number, seat in enumerate(seats, 1):
            if number % _JUDGED_AT_ONCE == 0:
                await asyncio.sleep(0)
            again = seat.judge(looks, now)
            if again is None:
                self._seats.discard(seat)
            else:
                seconds.append(again)
        return min(seconds, default=FIRST_TICK)

    async def _look(self, seats: list[Seat]) -> dict[str, Look]:
        """Ask how all batches stand; cancel those that are to be cancelled."""
        ids = dict.fromkeys(batch_id for seat in seats for batch_id in seat.watch.waiting)
        known = {batch.id: batch.created_at for seat in seats for batch in seat.watch.batches.values()}
        call = self._roll.call(ids.keys(), known, datetime.now(UTC))
        try:
            ask = next(call)
            while True:
                ask = call.send(await self._ask(ask))
        except StopIteration as over:
            looks: dict[str, Look] = over.value
        for batch_id in dict.fromkeys(i for seat in seats if seat.watch.cancelling for i in seat.watch.waiting):
            look = looks[batch_id]
            if isinstance(look, Batch) and look.processing_status == "in_progress":
                looks[batch_id] = await self._cancel(batch_id)
        return looks

    async def _ask(self, ask: Ask) -> Answer:
        self._calls += 1
        try:
            client = await self._open()
            if isinstance(ask, AskForPage):
                return await client.page(ask.after_id)
            return await client.look(ask.id)
        except ApiRefused as error:
            await self._close()  # the key may have been changed: the next call reads the connection again
            return error
        except ClaudeBatchError as error:
            return error

    async def _cancel(self, batch_id: str) -> Look:
        try:
            return await (await self._open()).cancel(batch_id)
        except ClaudeBatchError as error:
            return error

    async def _open(self) -> "AsyncClient":
        if self._client is None:
            self._client = await connection.open_async_client(self._conn_id)
        return self._client

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


@contextmanager
def seat_at_poller(conn_id: str, watch: Judge) -> Iterator[Seat]:
    """Take a place at the poller of this loop and connection, and leave it again."""
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = pollers.get(conn_id)
    if poller is None:
        poller = pollers[conn_id] = Poller(conn_id)
    seat = Seat(watch)
    poller.sit(seat)
    try:
        yield seat
    finally:
        poller.leave(seat)
