"""Elsewhere: receipts that an XCom backend keeps outside of Airflow's database, read beside the requests."""

import logging
import time
from collections.abc import Iterable
from functools import partial
from threading import Event, Lock
from types import SimpleNamespace

import msgspec

from airflow_provider_claude_batch.page.beside import Beside
from airflow_provider_claude_batch.page.stored import Found, decode

_THREADS, _AT_ONCE = 8, 256
_PATIENCE, _LATER = 2.0, 60.0
_NO_RECEIPT = Found(oddities=("it is a text, and names no place where a receipt lies",))

log = logging.getLogger(__name__)


class _Fetch:
    """One reference that is being read, for as many as want it."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.done = Event()
        self.found: Found | None = None

    def wait(self, seconds: float) -> Found | None:
        """Wait until so many seconds after it has begun: a store that hangs is waited for once."""
        self.done.wait(max(0.0, self.begun + seconds - time.monotonic()))
        return self.found


class Elsewhere:
    """Read references, each once; where that fails, again a minute later."""

    def __init__(self) -> None:
        self._beside = Beside(_THREADS)
        self._lock = Lock()
        self._running: dict[str, _Fetch] = {}
        self._asked: set[str] = set()
        self._read: dict[str, Found] = {}
        self._not_before: dict[str, float] = {}

    def take(self, reference: str) -> Found | None:
        """Return what was read since it was asked for, and keep it no longer."""
        return self._read.pop(reference, None)

    def ask(self, references: Iterable[str]) -> None:
        """Begin to read as many as the threads can bear, and wait for a moment: for a store that hangs, only once."""
        begun = []
        for reference in references:
            if self._not_before.get(reference, 0.0) > time.monotonic():
                continue
            with self._lock:
                if len(self._running) >= _AT_ONCE:
                    break
                self._asked.add(reference)
                if reference not in self._running:
                    begun.append(self._begin(reference))
        for fetch_ in begun:
            fetch_.wait(_PATIENCE)

    def read(self, references: Iterable[str], seconds: float) -> dict[str, Found]:
        """Read some now, as far as that goes in so many seconds."""
        fetches: dict[str, _Fetch] = {}
        for reference in references:
            with self._lock:
                if reference in self._running or len(self._running) < _AT_ONCE:
                    fetches[reference] = self._running.get(reference) or self._begin(reference)
        read = {reference: one.wait(seconds) for reference, one in fetches.items()}
        return {reference: found for reference, found in read.items() if found is not None}

    def _begin(self, reference: str) -> _Fetch:
        self._running[reference] = one = _Fetch()
        self._beside.run(partial(self._fetch, reference, one))
        return one

    def _fetch(self, reference: str, one: _Fetch) -> None:
        one.found = fetch(reference)
        with self._lock:
            if one.found is None:
                self._not_before[reference] = time.monotonic() + _LATER
            else:
                self._not_before.pop(reference, None)
                if reference in self._asked:
                    self._read[reference] = one.found
            self._asked.discard(reference)
            del self._running[reference]
        one.done.set()


def fetch(reference: str) -> Found | None:
    """Have the XCom backend read what it keeps: as a best effort, for it may be anybody's code."""
    from airflow.sdk.execution_time.xcom import XCom

    try:
        value = XCom.deserialize_value(SimpleNamespace(value=reference))
        found = decode(msgspec.json.encode(value).decode())
    except Exception as error:  # noqa: BLE001 - a store that is down, a value that is no JSON: the page does without
        log.warning("An XCom that is kept elsewhere cannot be read: %s.", type(error).__name__)
        return None
    return _NO_RECEIPT if isinstance(found, str) else found
