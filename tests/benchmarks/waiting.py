"""Measure what waiting costs: tasks by the thousand in one real triggerer, ours and the official provider's, in one run.

    python tests/benchmarks/waiting.py [seconds]

The peer is `pip install apache-airflow-providers-anthropic`. The rows of deferred tasks are written straight into
Airflow's database, as 1,000 workers would have left them. Each measurement has a triggerer process of its own, of which
the trigger runner is looked at, the subprocess that runs all triggers. Nothing ends meanwhile.
"""

import importlib.metadata
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from emulator import CONNECTION, HEADERS, Emulator
from stack import Stack

INTERVAL = 5.0
COUNTS = (1, 10, 100, 1000)
MANY = 5000
CONN_ID = "anthropic_default"
DAG = "waiting"
DAY = 86_400.0
SETTLE = 4 * INTERVAL
PATIENCE = 300.0
MIB = 2**20
PEER = "apache-airflow-providers-anthropic"


def ours(batch_id: str) -> Any:
    from airflow_provider_claude_batch import ClaudeBatchTrigger

    return ClaudeBatchTrigger(batch_ids=[batch_id], conn_id=CONN_ID, interval=INTERVAL)


def theirs(batch_id: str) -> Any:
    from airflow.providers.anthropic.triggers.batch import AnthropicBatchTrigger

    end_time = time.time() + DAY
    return AnthropicBatchTrigger(conn_id=CONN_ID, batch_id=batch_id, poll_interval=INTERVAL, end_time=end_time)


class Cost(NamedTuple):
    """What a triggerer took: seconds of CPU a second, bytes, calls to the API, and how late the event loop was."""

    cpu: float
    memory: int
    calls: int
    stall_at_start: float
    stall: float


class Deferred:
    """Airflow's database, with task instances that wait for triggers."""

    def __init__(self, stack: Stack) -> None:
        os.environ.update(stack.env)

        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.collection import update_dag_parsing_results_in_db
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagrun import DagRun
        from airflow.sdk import DAG as Dag  # noqa: N811
        from airflow.sdk import BaseOperator
        from airflow.serialization.serialized_objects import LazyDeserializedDAG
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunType

        with Dag(DAG, schedule=None) as dag:
            BaseOperator(task_id="wait")
        with create_session() as session:
            DagBundlesManager().sync_bundles_to_db(session=session)
            session.commit()
            lazy = [LazyDeserializedDAG.from_dag(dag)]
            update_dag_parsing_results_in_db("dags-folder", None, lazy, {}, 0.1, set(), session)
            session.add(DagRun(DAG, "run", state=DagRunState.RUNNING, run_type=DagRunType.MANUAL))
            self._version = DagVersion.get_latest_version(DAG, session=session).id
        self._task = dag.get_task("wait")

    def write(self, triggers: list[Any]) -> None:
        """Let as many tasks wait as there are triggers, and no others."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.trigger import Trigger
        from airflow.utils.session import create_session
        from airflow.utils.state import TaskInstanceState
        from sqlalchemy import delete

        rows = [Trigger.from_object(trigger) for trigger in triggers]
        with create_session() as session:
            session.execute(delete(TaskInstance))
            session.execute(delete(Trigger))
            session.add_all(rows)
            session.flush()
            for index, row in enumerate(rows):
                ti = TaskInstance(self._task, self._version, "run", TaskInstanceState.DEFERRED, index)
                ti.trigger_id, ti.try_number = row.id, 1
                session.add(ti)


class Bench:
    """A triggerer with its database and the API on the other side of the wire."""

    def __init__(self, stack: Stack, emulator: Emulator, seconds: float) -> None:
        self.stack, self.emulator, self.seconds = stack, emulator, seconds
        self.deferred = Deferred(stack)
        self.batch_ids: list[str] = []
        self._last_call = 0
        self._beat, self._stall = stack.home / "beat", stack.home / "stall"

    def create_batches(self, count: int) -> None:
        params = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
        body = {"requests": [{"custom_id": "only", "params": params}]}
        headers = {**HEADERS, "x-api-key": CONNECTION["password"]}
        with httpx.Client(base_url=self.emulator.base_url, headers=headers, trust_env=False) as http:
            while len(self.batch_ids) < count:
                answer = http.post("/v1/messages/batches", json=body).raise_for_status()
                self.batch_ids.append(answer.json()["id"])

    def measure(self, make: Callable[[str], Any], count: int) -> Cost:
        """Let so many tasks wait in a new triggerer, and look at it once it goes its even way."""
        from metronome import Metronome

        self.create_batches(count)
        self.deferred.write([Metronome(str(self.stack.home)), *map(make, self.batch_ids[:count])])
        self._new_calls()
        self._beat.touch()
        component = self.stack.start_component("triggerer")
        try:
            self._wait_for_log_files(count + 1)
            self._wait_for_calls(set(self.batch_ids[:count]))
            time.sleep(SETTLE)
            at_start = self._stop_beating()
            runner = self._runner(component.pid)
            cpu, calls = self._cpu(runner), self._calls()
            time.sleep(self.seconds)
            cpu, calls = self._cpu(runner) - cpu, self._calls() - calls
            memory = runner.memory_full_info().pss
            self._beat.touch()
            time.sleep(2 * INTERVAL)
            return Cost(cpu / self.seconds, memory, calls, at_start, self._stop_beating())
        finally:
            component.kill()
            component.log.unlink()
            self._remove_log_files()

    def _runner(self, pid: int) -> psutil.Process:
        (runner,) = psutil.Process(pid).children()
        return runner

    def _cpu(self, runner: psutil.Process) -> float:
        times = runner.cpu_times()
        return times.user + times.system

    def _calls(self) -> int:
        return sum(sum(statuses.values()) for statuses in self.emulator.summary().values())

    def _log_files(self) -> list[Path]:
        return list((self.stack.home / "logs").rglob("*.trigger.*.log"))

    def _wait_for_log_files(self, count: int) -> None:
        """Wait until every trigger has started, of which its first log line tells."""
        self._wait(lambda: len(self._log_files()) >= count, "not all triggers have started")

    def _wait_for_calls(self, batch_ids: set[str]) -> None:
        """Wait until every batch was asked for, alone or by a list."""
        self._wait(lambda: self._have_been_asked_for(batch_ids), "not all batches were asked for")

    def _have_been_asked_for(self, batch_ids: set[str]) -> bool:
        for call in self._new_calls():
            if call["operation"] == "list":
                batch_ids.clear()
            batch_ids.discard(call["batch_id"])
        return not batch_ids

    def _new_calls(self) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        while page := self.emulator.journal(after_id=self._last_call):
            self._last_call = page[-1]["id"]
            calls += page
        return calls

    def _remove_log_files(self) -> None:
        for path in self._log_files():
            path.unlink()

    def _stop_beating(self) -> float:
        self._beat.unlink()
        self._wait(self._stall.exists, "the event loop stands still")
        time.sleep(0.1)
        stall = float(self._stall.read_text())
        self._stall.unlink()
        return stall

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.stack.check_running()
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            time.sleep(0.2)


def tell(cost: Cost, empty: Cost) -> list[str]:
    return [
        f"{cost.cpu:.1%}",
        f"{(cost.memory - empty.memory) / MIB:.1f} MiB",
        f"{cost.calls:,}",
        f"{cost.stall * 1000:.0f} ms",
        f"{cost.stall_at_start * 1000:.0f} ms",
    ]


def tell_ratios(cost: Cost, peer: Cost, empty: Cost) -> list[str]:
    memory = (peer.memory - empty.memory) / (cost.memory - empty.memory)
    return [f"1/{peer.cpu / cost.cpu:.1f}", f"1/{memory:.1f}", f"1/{peer.calls / cost.calls:,.0f}", "", ""]


def tell_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def main(seconds: float = 30.0, counts: tuple[int, ...] = COUNTS, many: int = MANY) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print("; ".join(f"{name} {importlib.metadata.version(name)}" for name in ("apache-airflow", PEER, "anthropic")), "\n")
    with tempfile.TemporaryDirectory() as home, Emulator("--batch-seconds", str(DAY)) as emulator:
        (Path(home) / "dags").mkdir()
        stack = triggerer_only(Path(home), emulator)
        try:
            stack.prepare()
            bench = Bench(stack, emulator, seconds)
            bench.create_batches(max(counts))
            empty = bench.measure(ours, 0)
            tell_row("waiting tasks", "trigger", "CPU of one core", "memory above an empty triggerer", f"calls to the API in {seconds:.0f} s",
                "longest stall of the event loop", "longest stall at the start")
            tell_row(*["---"] * 7)
            tell_row("0", "", *tell(empty, empty))
            for count in counts:
                mine, peer = bench.measure(ours, count), bench.measure(theirs, count)
                tell_row(f"{count:,}", "`ClaudeBatchTrigger`", *tell(mine, empty))
                tell_row("", "`AnthropicBatchTrigger`", *tell(peer, empty))
                tell_row("", "ratio", *tell_ratios(mine, peer, empty))
            if many:
                tell_row(f"{many:,}", "`ClaudeBatchTrigger`", *tell(bench.measure(ours, many), empty))
            print(f"\nAn empty triggerer's runner takes {empty.memory / MIB:.0f} MiB (PSS).")
        finally:
            stack.stop()


def triggerer_only(home: Path, emulator: Emulator) -> Stack:
    env = {
        "AIRFLOW__TRIGGERER__CAPACITY": str(2 * MANY),
        "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": str(2 * MANY),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return Stack(home, home / "dags", {CONN_ID: {**CONNECTION, "host": emulator.base_url}}, env)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
