"""Elsewhere: receipts that an XCom backend keeps outside of Airflow's database, read beside the requests."""

import logging
import time
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import msgspec

from airflow_provider_claude_batch.page.beside import Beside
from airflow_provider_claude_batch.page.stored import decode
from airflow_provider_claude_batch.receipt import Receipt

_THREADS, _AT_ONCE = 8, 256
_PATIENCE, _LATER = 2.0, 60.0

log = logging.getLogger(__name__)


class Elsewhere:
    """Read references, each once; where that fails, again a minute later."""

    def __init__(self) -> None:
        self._beside = Beside(_THREADS)
        self._running: set[str] = set()
        self._read: dict[str, tuple[Receipt, ...]] = {}
        self._not_before: dict[str, float] = {}

    def take(self, reference: str) -> tuple[Receipt, ...] | None:
        """Return what was read since it was asked for, and keep it no longer."""
        return self._read.pop(reference, None)

    def ask(self, references: Iterable[str]) -> None:
        """Begin to read as many as the threads can bear, and wait for a moment: for a store that hangs, only once."""
        begun = []
        for reference in references:
            if len(self._running) >= _AT_ONCE:
                break
            if reference not in self._running and self._not_before.get(reference, 0.0) <= time.monotonic():
                self._running.add(reference)
                begun.append(self._beside.run(partial(self._fetch, reference)))
        until = time.monotonic() + _PATIENCE
        for done in begun:
            done.wait(max(0.0, until - time.monotonic()))

    def read(self, references: Iterable[str], seconds: float) -> dict[str, tuple[Receipt, ...]]:
        """Read some now, as far as that goes in so many seconds."""
        found: dict[str, tuple[Receipt, ...]] = {}

        def one(reference: str) -> None:
            if (receipts := fetch(reference)) is not None:
                found[reference] = receipts

        until = time.monotonic() + seconds
        for done in [self._beside.run(partial(one, reference)) for reference in references]:
            done.wait(max(0.0, until - time.monotonic()))
        return dict(found)

    def _fetch(self, reference: str) -> None:
        receipts = fetch(reference)
        if receipts is None:
            self._not_before[reference] = time.monotonic() + _LATER
        else:
            self._read[reference] = receipts
            self._not_before.pop(reference, None)
        self._running.discard(reference)


def fetch(reference: str) -> tuple[Receipt, ...] | None:
    """Have the XCom backend read what it keeps: as a best effort, for it may be anybody's code."""
    from airflow.sdk.execution_time.xcom import XCom

    try:
        value = XCom.deserialize_value(SimpleNamespace(value=reference))
        found = decode(msgspec.json.encode(value).decode())
    except Exception as error:  # noqa: BLE001 - a store that is down, a value that is no JSON: the page does without
        log.warning("An XCom that is kept elsewhere cannot be read: %s.", type(error).__name__)
        return None
    return () if isinstance(found, str) else found
