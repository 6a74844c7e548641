"""Beside: small jobs in a few threads of their own, which hold up neither a request nor the end of the server."""

import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread

_STUCK, _MOST = 60.0, 64


class Beside:
    """Run jobs in daemon threads, which start with the first job: what they are at ends with the process.

    A job that hangs keeps its thread. After a minute another thread takes its place, up to a limit.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._jobs: SimpleQueue[tuple[Callable[[], None], Event]] = SimpleQueue()
        self._lock = Lock()
        self._begun: dict[Thread, float | None] = {}

    def run(self, job: Callable[[], None]) -> Event:
        """Take a job, which must not raise; the event tells that it is done."""
        done = Event()
        self._jobs.put((job, done))
        with self._lock:
            stuck = sum(at is not None and time.monotonic() - at > _STUCK for at in self._begun.values())
            while len(self._begun) < min(self._threads + stuck, _MOST):
                thread = Thread(target=self._work, daemon=True, name="claude_batch_page")
                self._begun[thread] = None
                thread.start()
        return done

    def _work(self) -> None:
        me = current_thread()
        while True:
            self._begun[me] = None
            job, done = self._jobs.get()
            self._begun[me] = time.monotonic()
            try:
                job()
            finally:
                done.set()
