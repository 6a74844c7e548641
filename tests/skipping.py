"""Pauses that take no time: they pass by the emulator's clock, which the process then takes for its own."""

import asyncio
import json
import selectors
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

SKIPPED_SECONDS = 0.1  # and longer
_real_sleep = time.sleep


def skip_pauses(clock_url: str) -> None:
    """Let long pauses pass by the emulator's clock, and have this provider read the time from that clock too."""
    clock = Clock(clock_url)

    def sleep(seconds: float) -> None:
        if seconds >= SKIPPED_SECONDS:
            clock.advance(seconds)
            seconds = 0.01
        _real_sleep(seconds)

    def run(main: Any, **options: Any) -> Any:
        with asyncio.Runner(loop_factory=lambda: SkippingLoop(clock), **options) as runner:
            return runner.run(main)

    time.sleep, asyncio.run = sleep, run
    for name, module in list(sys.modules.items()):
        if name.startswith("airflow_provider_claude_batch.") and hasattr(module, "datetime"):
            module.datetime = clock.datetime  # type: ignore[attr-defined]


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop that skips the time in which nothing is on its way: no call, for each has a connection of its own
    that is closed after it, and no thread.
    """

    def __init__(self, clock: "Clock") -> None:
        self._clock = clock
        self._skipped = 0.0
        self._threads = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return super().time() + self._skipped

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> Any:
        self._threads += 1
        future = super().run_in_executor(executor, function, *arguments)
        future.add_done_callback(self._count_down)
        return future

    def _count_down(self, _: Any) -> None:
        self._threads -= 1

    def skip(self, seconds: float | None, files: int) -> float | None:
        """Return how long to wait in earnest."""
        if seconds is None or seconds < SKIPPED_SECONDS or self._threads or files > 1:  # one wakes the loop itself
            return seconds
        self._clock.advance(seconds)
        self._skipped += seconds
        return 0.0


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: SkippingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        return super().select(self._loop.skip(timeout, len(self.get_map())))


class Clock:
    """The emulator's clock, as the local one of this process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ahead = timedelta()
        self._call({})
        self.datetime = _datetime_of(self)

    def now(self, tz: Any = None) -> datetime:
        return datetime.now(tz) + self._ahead

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self._call({"advance": seconds})

    def _call(self, change: dict[str, Any]) -> None:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(change).encode() if change else None, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            self._ahead = datetime.fromisoformat(json.load(answer)["now"]) - datetime.now(UTC)


def _datetime_of(clock: Clock) -> Any:
    """Build a `datetime` whose `now` is the clock's, and that is otherwise the usual one."""

    class Look(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime)

        def __getattr__(cls, name: str) -> Any:
            return getattr(datetime, name)

        def __call__(cls, *args: Any, **kwargs: Any) -> datetime:
            return datetime(*args, **kwargs)  # noqa: DTZ001

    class Clocked(metaclass=Look):
        now = clock.now

    return Clocked
