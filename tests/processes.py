"""A task instance, process by process: each step is a fork that may be killed, and Airflow's rules go on from there."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psutil
from emulator import CONNECTION, Emulator
from nursery import RUN_ID
from wire import Wire

TESTS = Path(__file__).parent
PATIENCE = 180.0
FINISHED = ("success", "failed", "skipped", "upstream_failed")
ENVIRONMENT = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    "PYTHONWARNINGS": "ignore",
}


class Broken(RuntimeError):
    """The harness itself, not the task, went wrong."""


class Nursery:
    """The process that forks; a context manager. Each fork belongs to one step of one task instance."""

    def __init__(self, *preloaded: str) -> None:
        self._preloaded = preloaded
        self._directory = tempfile.TemporaryDirectory(prefix="crash-", ignore_cleanup_errors=True)
        self.home = Path(self._directory.name)
        self._count = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        (self.home / "dags").mkdir()
        paths = [TESTS, TESTS / "benchmarks"]
        env = {
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
        }
        with (self.home / "nursery.txt").open("w") as errors:
            command = [sys.executable, str(TESTS / "nursery.py"), *self._preloaded]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        try:
            self._hear()
        except Broken:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=PATIENCE)
        self._directory.cleanup()

    def database(self) -> Path:
        """Return a new Airflow database: a deployment of its own."""
        self._count += 1
        path = self.home / f"airflow-{self._count}.db"
        shutil.copy(self.home / "airflow.db", path)
        return path

    def fork(self, order: dict[str, Any]) -> "Process":
        self._count += 1
        files = {"outcome": f"{self.home}/outcome-{self._count}.json", "log": f"{order['database']}.log"}
        return Process(self, self.ask({**order, **files})["pid"])

    def ask(self, order: dict[str, Any]) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._hear()

    def _hear(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Broken((self.home / "nursery.txt").read_text()[-3000:])
        return json.loads(line)


class Process:
    """One step of a task instance."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self.outcome: dict[str, Any] | None = None

    def poll(self) -> dict[str, Any] | None:
        if self.outcome is None:
            self.outcome = self._nursery.ask({"do": "poll", "pid": self.pid})
        return self.outcome

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """Wait until the step is done, or something has happened."""
        deadline = time.monotonic() + seconds
        while not until() and self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.outcome

    @property
    def is_frozen(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, unless it was quicker: until it is polled, its process id is its own."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Task:
    """One task instance that is taken through its steps, process by process."""

    def __init__(
        self,
        nursery: Nursery,
        emulator: Emulator,
        dag: str,
        arguments: dict[str, Any] | None = None,
        *,
        wire: Wire,
        database: Path | None = None,
        store: bool = True,
        task_id: str = "submit",
        map_index: int = -1,
        env: dict[str, str] | None = None,
        patches: Iterable[str] = (),
    ) -> None:
        self.nursery, self.task_id, self.map_index = nursery, task_id, map_index
        self.database = database or nursery.database()
        self.steps: list[dict[str, Any]] = []
        self.kills = 0
        connections = {"AIRFLOW_CONN_ANTHROPIC_DEFAULT": json.dumps({**CONNECTION, "host": wire.base_url})}
        self._order: dict[str, Any] = {
            "database": str(self.database),
            "dag": dag,
            "arguments": arguments or {},
            "task_id": task_id,
            "map_index": map_index,
            "env": {**connections, **(env or {})},
            "clock_url": f"{emulator.base_url}/emulator/clock",
            "patches": [*patches, *([] if store else ["nursery:forget_state"])],
        }
        self._killed = False

    def start(self, *patches: str) -> Process:
        """Start the next step; the patches are for this one alone."""
        order = {**self._order, "do": "step", "bury": self._killed, "patches": [*self._order["patches"], *patches]}
        self._killed = False
        return self.nursery.fork(order)

    def end(self, process: Process) -> str | None:
        """Take the outcome of a step: the state of the task instance, or None of one that was killed."""
        outcome = process.wait()
        if outcome is None or "broken" in outcome:
            process.kill()
            raise Broken(f"{outcome and outcome['broken']}\n{self.log[-3000:]}")
        self.steps.append(outcome)
        return outcome.get("state")

    def kill(self, process: Process) -> bool:
        """Kill a step; False where it was already done."""
        process.kill()
        self._killed = self.end(process) is None
        self.kills += self._killed
        return self._killed

    def abandon(self, process: Process) -> None:
        """Take a step for dead that lives on, as the scheduler does when heartbeats do not reach it."""
        self._killed = process.poll() is None

    @property
    def is_finished(self) -> bool:
        return bool(self.steps) and self.steps[-1].get("state") in FINISHED

    def finish(self, limit: int = 40) -> str:
        """Take every step that is left, tries included."""
        for _ in range(limit):
            if self.is_finished:
                return str(self.steps[-1]["state"])
            self.end(self.start())
        raise Broken(f"{self.task_id} does not come to an end: {self.steps[-6:]}\n{self.log[-3000:]}")

    def clear(self) -> None:
        """Clear the task, as a user does."""
        self.end(self.nursery.fork({**self._order, "do": "clear"}))  # what was killed is buried by the next step

    @property
    def log(self) -> str:
        path = Path(f"{self.database}.log")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def receipt(self) -> Any:
        """The XCom of the task, as Airflow stores it."""
        rows = self._query("SELECT value FROM xcom WHERE key = 'return_value' AND {}")
        return json.loads(rows[0][0]) if rows else None

    @property
    def batch_ids(self) -> list[str]:
        return [part["id"] for part in self.receipt["batches"]] if self.receipt else []

    @property
    def notes(self) -> list[Any]:
        """What stands in Airflow's task_state_store."""
        return self._query("SELECT key, value FROM task_state_store WHERE {} ORDER BY key")

    def _query(self, sql: str) -> list[Any]:
        place = "run_id = ? AND task_id = ? AND map_index = ?"
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(sql.format(place), (RUN_ID, self.task_id, self.map_index)).fetchall()
