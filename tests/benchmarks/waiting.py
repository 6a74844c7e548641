"""Measure what waiting costs: tasks by the thousand in one real triggerer, ours beside the official provider's.

    python tests/benchmarks/waiting.py [seconds]

The peer is `pip install apache-airflow-providers-anthropic`. The rows of deferred tasks are written straight into
Airflow's database, as so many workers would have left them. Each measurement has a triggerer of its own, of which the
trigger runner is looked at: the subprocess that runs all triggers. Nothing ends meanwhile.
"""

import importlib.metadata
import subprocess
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

from deferred import Wait, defer, forget
from emulator import CONNECTION, HEADERS, Emulator
from stack import Component, Stack

INTERVAL = 5.0
SETTLE = 20.0
PATIENCE = 300.0
DAY = 86_400.0
COUNTS = (1, 10, 100, 1000)
MANY = 5000
CONN_ID = "anthropic_default"
PEER = "apache-airflow-providers-anthropic"
DAG = """
from airflow.sdk import DAG, BaseOperator

with DAG("waiting", schedule=None):
    BaseOperator(task_id="wait")
"""
WARM_UP = "import airflow.jobs.triggerer_job_runner, airflow.providers.anthropic.triggers.batch, httpcore2"
HEADER = (
    "waiting tasks",
    "trigger",
    "CPU of one core",
    "memory above an empty triggerer",
    "calls to the API",
    "longest stall of the event loop",
    "longest stall while they start",
)


def ours(batch_id: str) -> Wait:
    kwargs = {"batch_ids": [batch_id], "conn_id": CONN_ID, "interval": INTERVAL}
    return Wait("airflow_provider_claude_batch.trigger.ClaudeBatchTrigger", kwargs)


def theirs(batch_id: str) -> Wait:
    kwargs = {"conn_id": CONN_ID, "batch_id": batch_id, "poll_interval": INTERVAL, "end_time": time.time() + DAY}
    return Wait("airflow.providers.anthropic.triggers.batch.AnthropicBatchTrigger", kwargs)


def asleep(batch_id: str) -> Wait:
    """What Airflow itself takes for any trigger."""
    return Wait(
        "airflow.providers.standard.triggers.temporal.DateTimeTrigger", {"target_time": "2099-01-01T00:00:00+00:00"}
    )


class Cost(NamedTuple):
    """What a triggerer took: seconds of CPU a second, bytes, calls to the API, and how late its event loop was."""

    cpu: float
    memory: int
    calls: int
    stall: float
    stall_at_start: float


class Metronome:
    """The trigger that tells how late the event loop is; it beats while nothing else is measured."""

    def __init__(self, home: Path) -> None:
        self.wait = Wait("metronome.Metronome", {"folder": str(home)})
        self._beat, self._stall = home / "beat", home / "stall"

    def start(self) -> None:
        self._beat.touch()

    def stop(self) -> float:
        """Return the longest stall since the start."""
        self._beat.unlink()
        wait_for(self._stall.exists, "the event loop stands still")
        stall = float(self._stall.read_text())
        self._stall.unlink()
        return stall


class Bench:
    """A triggerer with its database, and the API on the other side of the wire."""

    def __init__(self, stack: Stack, emulator: Emulator, seconds: float) -> None:
        self.stack, self.emulator, self.seconds = stack, emulator, seconds
        self.metronome = Metronome(stack.home)
        self.batch_ids: list[str] = []
        self._last_call = 0

    def create_batches(self, count: int) -> None:
        params = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
        body = {"requests": [{"custom_id": "only", "params": params}]}
        headers = {**HEADERS, "x-api-key": CONNECTION["password"]}
        with httpx.Client(base_url=self.emulator.base_url, headers=headers, trust_env=False) as http:
            while len(self.batch_ids) < count:
                answer = http.post("/v1/messages/batches", json=body).raise_for_status()
                self.batch_ids.append(answer.json()["id"])

    def measure(self, make: Callable[[str], Wait], count: int) -> Cost:
        """Let so many tasks come to a triggerer and wait, and look at it once it goes its even way."""
        forget(self.stack, "waiting")
        self._new_calls()
        self._defer([self.metronome.wait])
        self.metronome.start()
        triggerer = self.stack.start_component("triggerer")
        try:
            self._wait_for_triggers(1)
            newest = self.batch_ids[len(self.batch_ids) - count :]
            self._defer([make(batch_id) for batch_id in newest])
            self._wait_for_triggers(1 + count)
            if make is not asleep:
                self._wait_for_calls(set(newest))
            time.sleep(SETTLE)
            return self._look_at(triggerer)
        finally:
            triggerer.kill()
            triggerer.log.unlink()
            for path in self._trigger_logs():
                path.unlink()

    def _look_at(self, triggerer: Component) -> Cost:
        stall_at_start = self.metronome.stop()
        (runner,) = psutil.Process(triggerer.pid).children()
        cpu, calls = _cpu(runner), self._calls()
        time.sleep(self.seconds)
        cpu, calls = _cpu(runner) - cpu, self._calls() - calls
        memory = runner.memory_full_info().pss
        self.metronome.start()
        time.sleep(3 * INTERVAL)
        return Cost(cpu / self.seconds, memory, calls, self.metronome.stop(), stall_at_start)

    def _defer(self, waits: list[Wait]) -> None:
        defer(self.stack, "waiting", "wait", waits)

    def _calls(self) -> int:
        return sum(sum(statuses.values()) for statuses in self.emulator.summary().values())

    def _trigger_logs(self) -> list[Path]:
        return list((self.stack.home / "logs").rglob("*.trigger.*.log"))

    def _wait_for_triggers(self, count: int) -> None:
        """Wait until so many triggers have started, of which each one's first log line tells."""
        wait_for(lambda: len(self._trigger_logs()) >= count, "not all triggers have started")

    def _wait_for_calls(self, batch_ids: set[str]) -> None:
        """Wait until every batch was asked for, alone or by a list."""

        def are_asked_for() -> bool:
            for call in self._new_calls():
                batch_ids.difference_update(list(batch_ids) if call["operation"] == "list" else [call["batch_id"]])
            return not batch_ids

        wait_for(are_asked_for, "not all batches were asked for")

    def _new_calls(self) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        while page := self.emulator.journal(after_id=self._last_call):
            self._last_call = page[-1]["id"]
            calls += page
        return calls


def wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def tell(count: int, name: str, cost: Cost, empty: Cost) -> None:
    row(
        f"{count:,}",
        name,
        f"{cost.cpu:.1%}",
        f"{(cost.memory - empty.memory) / 2**20:.0f} MiB",
        f"{cost.calls:,}",
        f"{cost.stall * 1000:.0f} ms",
        f"{cost.stall_at_start * 1000:.0f} ms",
    )


def tell_ratio(mine: Cost, peer: Cost, empty: Cost) -> None:
    memory = (peer.memory - empty.memory) / (mine.memory - empty.memory)
    row("", "ratio", *(f"1/{ratio:.1f}" for ratio in (peer.cpu / mine.cpu, memory, peer.calls / mine.calls)), "", "")


def row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def compare(bench: Bench) -> None:
    """Print what each number of waiting tasks takes, ours beside as many of the peer's."""
    row(*HEADER)
    row(*["---"] * len(HEADER))
    empty = bench.measure(asleep, 0)
    tell(0, "", empty, empty)
    bench.create_batches(max(COUNTS))
    tell(max(COUNTS), "`DateTimeTrigger`", bench.measure(asleep, max(COUNTS)), empty)
    for count in COUNTS:
        mine, peer = bench.measure(ours, count), bench.measure(theirs, count)
        tell(count, "`ClaudeBatchTrigger`", mine, empty)
        tell(count, "`AnthropicBatchTrigger`", peer, empty)
        tell_ratio(mine, peer, empty)
    bench.create_batches(MANY)
    tell(MANY, "`DateTimeTrigger`", bench.measure(asleep, MANY), empty)
    tell(MANY, "`ClaudeBatchTrigger`", bench.measure(ours, MANY), empty)
    print(f"\nCPU, memory (PSS) and calls over {bench.seconds:.0f} s. Empty: {empty.memory / 2**20:.0f} MiB.")


def prepared(home: Path, emulator: Emulator) -> Stack:
    """Return an Airflow with a database and a Dag; its modules are compiled, as they are where pip installed them."""
    env = {
        "AIRFLOW__TRIGGERER__CAPACITY": str(2 * MANY),
        "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": str(2 * MANY),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),
    }
    (home / "dags").mkdir()
    (home / "dags" / "waiting.py").write_text(DAG)
    stack = Stack(home, home / "dags", {CONN_ID: {**CONNECTION, "host": emulator.base_url}}, env)
    stack.prepare()
    for command in (["-m", "airflow", "dags", "reserialize"], ["-c", WARM_UP]):
        subprocess.run([sys.executable, *command], env=stack.env, cwd=home, capture_output=True, check=True)
    return stack


def main(seconds: float = 30.0) -> None:
    packages = ("apache-airflow", PEER, "anthropic")
    print("; ".join(f"{name} {importlib.metadata.version(name)}" for name in packages), "\n")
    with tempfile.TemporaryDirectory() as home, Emulator("--batch-seconds", str(DAY)) as emulator:
        stack = prepared(Path(home), emulator)
        try:
            compare(Bench(stack, emulator, seconds))
        finally:
            stack.stop()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
