"""The poller: one for each event loop and connection asks for every batch that the triggers there wait for."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from airflow_provider_claude_batch import connection, metrics
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ClaudeBatchError, PollFailed
from airflow_provider_claude_batch.roll_call import Answer, Ask, Roll
from airflow_provider_claude_batch.watch import Ending, Look, Wait, seconds_asked_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_claude_batch.client import AsyncClient

FIRST_TICK = 1.0
READ_SECONDS = 60.0
_JUDGED_AT_ONCE = 50

log = logging.getLogger(__name__)

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
        self._thread = ThreadPoolExecutor(1)  # of this connection alone: reading another may hang
        self._sooner = asyncio.Event()
        self._not_before = 0.0
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
            metrics.count_waiting(self._conn_id, 0)
            self._thread.shutdown(wait=False, cancel_futures=True)
            await self._close()

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next tick; who joins meanwhile waits no longer than its own interval, or than the API wants."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while True:
            soonest = min((seat.watch.interval for seat in self._seats if not seat.looks), default=seconds)
            due = max(self._not_before, min(due, loop.time() + soonest))
            self._sooner.clear()
            try:
                await asyncio.wait_for(self._sooner.wait(), due - loop.time())
            except TimeoutError:
                return

    async def _tick(self) -> float:
        seats, self._roll.asked = list(self._seats), 0
        looks: dict[str, Look]
        try:
            looks = await self._look(await self._open(), seats)
        except Exception as error:  # noqa: BLE001 - each wait judges it, as it judges an error of the API
            looks = dict.fromkeys(_waited_for(seats), _trouble(error))
        if not all(isinstance(look, Batch) for look in looks.values()):
            await self._close()  # the connection may be mended by then: the next tick reads it again
        self._not_before = asyncio.get_running_loop().time() + seconds_asked_for(looks)
        seconds = await self._judge(seats, looks)
        metrics.count_poll(self._conn_id, calls=self._roll.asked, looks=looks.values())
        metrics.count_waiting(self._conn_id, len(_waited_for(self._seats)))
        return seconds

    async def _judge(self, seats: list[Seat], looks: dict[str, Look]) -> float:
        """Let every seat judge, and return after how many seconds the first of them wants to look again."""
        now, seconds = datetime.now(UTC), []
        for number, seat in enumerate(seats, 1):
            if number % _JUDGED_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                again = seat.judge(looks, now)
            except Exception as error:  # noqa: BLE001 - it ends this wait, and no other
                seat.tell(error)
                again = None
            if again is None:
                self._seats.discard(seat)
            else:
                seconds.append(again)
        return min(seconds, default=FIRST_TICK)

    async def _look(self, client: "AsyncClient", seats: list[Seat]) -> dict[str, Look]:
        """Ask how all batches stand; cancel those that are to be cancelled."""
        known = {batch.id: batch.created_at for seat in seats for batch in seat.watch.batches.values()}
        call = self._roll.call(_waited_for(seats), known, datetime.now(UTC))
        try:
            ask = next(call)
            while True:
                ask = call.send(await _answer(client, ask))
        except StopIteration as over:
            looks: dict[str, Look] = over.value
        for batch_id in _waited_for(seat for seat in seats if seat.watch.cancelling):
            look = looks[batch_id]
            if isinstance(look, Batch) and look.processing_status == "in_progress":
                looks[batch_id] = await _cancelled(client, batch_id)
        return looks

    async def _open(self) -> "AsyncClient":
        if self._client is None:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    self._client = await connection.open_async_client(self._conn_id, self._thread)
            except ClaudeBatchError:
                raise
            except Exception as error:
                raise PollFailed(
                    f"Connection {self._conn_id!r} cannot be read ({type(error).__name__}): check the secrets backend, "
                    "and that the triggerer may read the connection."
                ) from error
        return self._client

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _waited_for(seats: Iterable[Seat]) -> Collection[str]:
    return dict.fromkeys(batch_id for seat in seats for batch_id in seat.watch.waiting).keys()


async def _answer(client: "AsyncClient", ask: Ask) -> Answer:
    try:
        return await client.answer(ask)
    except Exception as error:  # noqa: BLE001 - it is the answer to this one question
        return _trouble(error)


async def _cancelled(client: "AsyncClient", batch_id: str) -> Look:
    try:
        return await client.cancel(batch_id)
    except Exception as error:  # noqa: BLE001 - it is the answer to this one call
        return _trouble(error)


def _trouble(error: Exception) -> ClaudeBatchError:
    """Make an error of ours of any other; the text of one that we do not know may hold a secret."""
    if isinstance(error, ClaudeBatchError):
        return error
    kind, where = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    log.error("Asking for batches failed (%s) at:\n%s", kind, where)
    return PollFailed(f"Asking for batches failed ({kind}): the triggerer's log says where.")


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
