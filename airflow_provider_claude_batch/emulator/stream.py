"""Sends lines as they are made, to readers of any pace, and can break off on the way."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import islice

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from airflow_provider_claude_batch.emulator.faults import Fault

LINES_AT_A_TIME, BYTES_AT_A_TIME = 200, 1 << 18
HangUp = Callable[[Scope, bool], None]


class LineStream(Response):
    """A response of lines made in a thread; `interruption` cuts or stalls it after so many rows or bytes."""

    def __init__(
        self, lines: Iterator[bytes], headers: dict[str, str], hang_up: HangUp, interruption: Fault | None = None
    ) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._lines, self._hang_up, self._interruption = lines, hang_up, interruption

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        leaving = asyncio.ensure_future(left(receive))
        try:
            if self._interruption:
                head, rest = await run_in_threadpool(_split, self._lines, self._interruption)
                await self._send(send, head)
                await self._interrupt(scope, self._interruption, leaving)
                await self._send(send, rest)
            while not leaving.done() and (chunk := await run_in_threadpool(_join, self._lines)):
                await self._send(send, chunk)
            if not leaving.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()

    async def _send(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _interrupt(self, scope: Scope, fault: Fault, leaving: "asyncio.Future[None]") -> None:
        if fault.fault == "cut_results":
            self._hang_up(scope, False)
            await leaving
        else:
            await wait(leaving, fault.seconds)


async def left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def wait(leaving: Awaitable[None], seconds: float | None) -> bool:
    """Wait so long, or without a number until the client is gone; say whether it stayed."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(leaving), seconds)
        return False
    return True


def _join(lines: Iterator[bytes]) -> bytes:
    piece = bytearray()
    for line in islice(lines, LINES_AT_A_TIME):
        piece += line
        if len(piece) >= BYTES_AT_A_TIME:
            break
    return bytes(piece)


def _split(lines: Iterator[bytes], fault: Fault) -> tuple[bytes, bytes]:
    """Take what is sent before the interruption, which is in the midst of a line, and the rest of that line."""
    if fault.bytes is None:
        head = b"".join(islice(lines, 1 if fault.rows is None else fault.rows))
        line = next(lines, b"")
        return head + line[: len(line) // 2], line[len(line) // 2 :]
    taken = bytearray()
    while len(taken) < fault.bytes and (line := next(lines, b"")):
        taken += line
    return bytes(taken[: fault.bytes]), bytes(taken[fault.bytes :])
