"""Beside: small jobs in a few threads of their own, which hold up neither a request nor the end of the server."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread


class Beside:
    """Run jobs in daemon threads, which start with the first job: what they are at ends with the process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._jobs: SimpleQueue[tuple[Callable[[], None], Event]] = SimpleQueue()

    def run(self, job: Callable[[], None]) -> Event:
        """Take a job, which must not raise; the event tells that it is done."""
        done = Event()
        self._jobs.put((job, done))
        while self._threads > 0:
            self._threads -= 1
            Thread(target=self._work, daemon=True, name="claude_batch_page").start()
        return done

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            try:
                job()
            finally:
                done.set()
