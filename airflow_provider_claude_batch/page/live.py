"""Live looks: how batches that run stand right now, asked for seldom, and by nobody twice."""

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from threading import Lock

from airflow_provider_claude_batch import connection
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.roll_call import Roll

Born = Mapping[str, datetime | None]

_FRESH, _FRESH_ERROR = 10.0, 60.0
_PAUSE = 2.0
_PATIENCE = 5.0
_MOST, _MOST_AT_ONCE = 20_000, 2_000

log = logging.getLogger(__name__)


class Live:
    """Ask the API with the connection of the receipt: one call at a time for each connection, and a pause between."""

    def __init__(self) -> None:
        self.looks: dict[str, Batch] = {}
        self._lines: dict[str, _Line] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="claude_batch_live")

    def ask(self, wanted: Mapping[str, Born]) -> None:
        """Ask for batches by connection, where nobody has just now; wait a few seconds for the answers at most."""
        with self._lock:
            asked = [self._asked(conn_id, born) for conn_id, born in wanted.items()]
        wait([future for future in asked if future is not None], timeout=_PATIENCE)

    def problems(self, conn_ids: Iterable[str]) -> list[str]:
        """Say which connections gave no answer, and why."""
        lines = (self._lines.get(conn_id) for conn_id in conn_ids)
        return sorted({line.problem for line in lines if line and line.problem})

    def asked_at(self, conn_ids: Iterable[str]) -> datetime | None:
        """Tell since when nothing newer is known."""
        lines = [self._lines.get(conn_id) for conn_id in conn_ids]
        return min((line.asked_at for line in lines if line and line.asked_at), default=None)

    def _asked(self, conn_id: str, born: Born) -> "Future[None] | None":
        line = self._lines.setdefault(conn_id, _Line())
        if line.running is not None and not line.running.done():
            return line.running
        due = [one for one in born if line.is_due(one) and not self._has_ended(one)]
        if not due or time.monotonic() - line.last < _PAUSE:
            return None
        line.last = time.monotonic()
        line.running = self._pool.submit(self._call, conn_id, line, {one: born[one] for one in due[:_MOST_AT_ONCE]})
        return line.running

    def _has_ended(self, batch_id: str) -> bool:
        look = self.looks.get(batch_id)
        return look is not None and look.ended

    def _call(self, conn_id: str, line: "_Line", born: Born) -> None:
        problem, batches = None, dict[str, Batch]()
        try:
            with connection.open_client(conn_id) as client:
                known = {batch_id: moment for batch_id, moment in born.items() if moment}
                looks = line.roll.drive(born.keys(), known, client.answer)
            batches = {batch_id: look for batch_id, look in looks.items() if isinstance(look, Batch)}
            problem = next((str(look) for look in looks.values() if isinstance(look, ClaudeBatchError)), None)
            with self._lock:
                self.looks = {**dict(list(self.looks.items())[-_MOST:]), **batches}
        except ClaudeBatchError as error:
            problem = str(error)
        except Exception:  # a connection's hook may be anybody's code, and the page does without an answer
            log.exception("Connection %s cannot be asked how its batches stand.", conn_id)
            problem = f"Connection {conn_id!r} cannot be asked how its batches stand: the API server's log says why."
        line.over(batches, born.keys() - batches.keys(), problem)


class _Line:
    """What is known of one connection."""

    def __init__(self) -> None:
        self.roll = Roll()
        self.running: Future[None] | None = None
        self.last = -_PAUSE
        self.asked_at: datetime | None = None
        self.problem: str | None = None
        self._due: dict[str, float] = {}

    def is_due(self, batch_id: str) -> bool:
        return time.monotonic() >= self._due.get(batch_id, 0.0)

    def over(self, seen: Iterable[str], unseen: Iterable[str], problem: str | None) -> None:
        """Remember when to ask again: what gave no answer waits longer."""
        now = time.monotonic()
        self.problem, self.asked_at = problem, datetime.now(UTC)
        later = {batch_id: at for batch_id, at in self._due.items() if at > now}
        self._due = later | dict.fromkeys(seen, now + _FRESH) | dict.fromkeys(unseen, now + _FRESH_ERROR)
