"""Live looks: how batches that run stand right now, asked for seldom, and by nobody twice."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from threading import Event, Lock

from airflow_provider_claude_batch import connection
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import BatchGone, ClaudeBatchError
from airflow_provider_claude_batch.masking import masked_trace
from airflow_provider_claude_batch.page.beside import Beside
from airflow_provider_claude_batch.roll_call import Answer, Ask, AskForPage, Roll
from airflow_provider_claude_batch.watch import Look

Born = Mapping[str, datetime | None]

_THREADS = 4
_FRESH, _FRESH_ERROR, _FRESH_GONE = 10.0, 60.0, 3600.0
_PAUSE = 2.0
_PATIENCE = 5.0
_MOST, _MOST_AT_ONCE, _MOST_SINGLE = 20_000, 2_000, 20

log = logging.getLogger(__name__)


class _Later(ClaudeBatchError):
    """Enough was asked for in one go: this batch has its turn next time."""


class Live:
    """Ask the API with the connection of the receipt: one call at a time for each connection, and a pause between."""

    def __init__(self) -> None:
        self.looks: dict[str, Batch] = {}
        self._lines: dict[str, _Line] = {}
        self._lock = Lock()
        self._beside = Beside(_THREADS)

    def ask(self, wanted: Mapping[str, Born]) -> None:
        """Ask for batches by connection, where nobody has just now; wait a few seconds for the answers at most."""
        with self._lock:
            asked = [self._asked(conn_id, born) for conn_id, born in wanted.items()]
        until = time.monotonic() + _PATIENCE
        for done in asked:
            done.wait(max(0.0, until - time.monotonic()))

    def has_ended(self, batch_id: str) -> bool:
        """Say whether the API has said so: it is not asked again."""
        look = self.looks.get(batch_id)
        return look is not None and look.ended

    def problems(self, conn_ids: Iterable[str]) -> dict[str, str]:
        """Say which connections gave no answer, and why."""
        lines = {conn_id: self._lines.get(conn_id) for conn_id in sorted(conn_ids)}
        return {conn_id: line.problem for conn_id, line in lines.items() if line and line.problem}

    def _asked(self, conn_id: str, born: Born) -> Event:
        line = self._lines.setdefault(conn_id, _Line())
        due = [one for one in born if line.is_due(one)][:_MOST_AT_ONCE]
        if line.done.is_set() and due and time.monotonic() - line.last >= _PAUSE:
            line.last = time.monotonic()
            line.done = self._beside.run(partial(self._call, conn_id, line, {one: born[one] for one in due}))
        return line.done

    def _call(self, conn_id: str, line: "_Line", born: Born) -> None:
        known = {batch_id: moment for batch_id, moment in born.items() if moment}
        try:
            with connection.open_client(conn_id) as client:
                looks = line.roll.drive(born.keys(), known, _Few(client.answer))
            line.over(looks)
            seen = {batch_id: look for batch_id, look in looks.items() if isinstance(look, Batch)}
            with self._lock:
                self.looks = {**dict(list(self.looks.items())[-_MOST:]), **seen}
        except ClaudeBatchError as error:
            line.over(dict.fromkeys(born, error))
        except Exception as error:  # noqa: BLE001 - a connection's hook may be anybody's code, and the page does without an answer
            trace = masked_trace(error)
            log.error("Connection %s cannot be asked how its batches stand.\n%s", conn_id, trace)  # noqa: TRY400 - masked
            said = f"Connection {conn_id!r} cannot be asked how its batches stand: the API server's log says why."
            line.over(dict.fromkeys(born, ClaudeBatchError(said)))


class _Few:
    """Ask for pages, and for a few batches one by one: the calls are those of the Dags, too."""

    def __init__(self, answer: Callable[[Ask], Answer]) -> None:
        self._answer = answer
        self._left = _MOST_SINGLE

    def __call__(self, ask: Ask) -> Answer:
        self._left -= not isinstance(ask, AskForPage)
        return self._answer(ask) if self._left >= 0 else _Later()


class _Line:
    """What is known of one connection: how it answered last, and when to ask for which batch again."""

    def __init__(self) -> None:
        self.roll = Roll()
        self.done = Event()
        self.done.set()
        self.last = -_PAUSE
        self.problem: str | None = None
        self._due: dict[str, float] = {}

    def is_due(self, batch_id: str) -> bool:
        return time.monotonic() >= self._due.get(batch_id, 0.0)

    def over(self, looks: Mapping[str, Look]) -> None:
        """Take in how each batch was seen; what gave no answer waits longer, and what the API has forgotten longest."""
        now = time.monotonic()
        later = {batch_id: at for batch_id, at in self._due.items() if at > now}
        self._due = later | {batch_id: now + _fresh(look) for batch_id, look in looks.items()}
        errors = [look for look in looks.values() if not isinstance(look, Batch | BatchGone | _Later)]
        self.problem = str(errors[0]) if errors else None


def _fresh(look: Look) -> float:
    if isinstance(look, BatchGone):
        return _FRESH_GONE
    return _FRESH if isinstance(look, Batch | _Later) else _FRESH_ERROR
