"""A triggerer dies while a hundred tasks wait: another takes them over, and each of them ends once."""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deferred import RUN_ID, Wait, defer
from emulator import CONNECTION, Emulator
from stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1_800)]
EMULATOR = ("--batch-seconds", "3600")
TASKS = 100
PATIENCE = 600  # a hundred tasks to resume are minutes of work
DAG = """
from airflow.sdk import dag
from airflow_provider_claude_batch import ClaudeBatchSensor

@dag(schedule=None, max_active_tasks=200)
def many_waits():
    ClaudeBatchSensor.partial(task_id="wait", poke_interval=5).expand(batch={batch_ids})

many_waits()
"""
QUICK_TO_NOTICE = {
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
}


@pytest.fixture
def batch_ids(emulator: Emulator, sdk: Any) -> list[str]:
    """A hundred batches of the connection's workspace."""
    params = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
    requests = [{"custom_id": "only", "params": params}]
    key = {"x-api-key": CONNECTION["password"]}
    return [sdk.messages.batches.create(requests=requests, extra_headers=key).id for _ in range(TASKS)]


@pytest.fixture
def stack(tmp_path: Path, emulator: Emulator, batch_ids: list[str]) -> Stack:
    """An Airflow that soon notices when a triggerer is dead."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "many_waits.py").write_text(DAG.format(batch_ids=batch_ids))
    connections = {"anthropic_default": {**CONNECTION, "host": emulator.base_url}}
    return Stack(tmp_path / "airflow", tmp_path / "dags", connections, QUICK_TO_NOTICE)


def wait(batch_id: str) -> Wait:
    kwargs = {"batch_ids": [batch_id], "conn_id": "anthropic_default", "interval": 5.0}
    return Wait("airflow_provider_claude_batch.trigger.ClaudeBatchTrigger", kwargs)


def wait_for(condition: Callable[[], bool], pause: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def waiting(stack: Stack) -> Counter[int]:
    """Count the deferred tasks of each triggerer job."""
    instances = stack.api.task_instances("many_waits", RUN_ID)
    return Counter(one["triggerer_job"]["id"] for one in instances if one["triggerer_job"])


def events(stack: Stack) -> dict[int, list[str]]:
    """Return what Airflow's audit log says of each mapped task."""
    found: dict[int, list[str]] = {}
    for offset in range(0, 10 * TASKS, TASKS):
        page = stack.api.get("/eventLogs", dag_id="many_waits", order_by="event_log_id", limit=TASKS, offset=offset)
        for event in page["event_logs"]:
            if event["task_id"] == "wait":
                found.setdefault(event["map_index"], []).append(event["event"])
    return found


def logged(stack: Stack, files: str) -> str:
    return "".join(path.read_text() for path in (stack.home / "logs").rglob(files))


def told(stack: Stack, batch_ids: list[str]) -> set[int]:
    """Return how often the tasks' logs tell of the end of each batch."""
    said = logged(stack, "attempt=1.log")
    # Airflow takes whatever begins with eyJ for a token, and one id in a few thousand holds that by chance.
    shown = [re.sub(r"eyJ.*", "eyJ******", batch_id) for batch_id in batch_ids]
    return {said.count(f"Batch {batch_id} ended") for batch_id in shown}


def fired(stack: Stack) -> int:
    return logged(stack, "*.trigger.*.log").count("Trigger fired event")


def test_when_a_triggerer_is_killed_another_takes_its_tasks_over_and_each_ends_once(
    stack: Stack, emulator: Emulator, batch_ids: list[str]
) -> None:
    with stack:
        stack.wait_healthy()
        stack.api.wait_dag("many_waits")
        defer(stack, "many_waits", "wait", [wait(batch_id) for batch_id in batch_ids])
        wait_for(lambda: waiting(stack).total() == TASKS and len(emulator.journal(operation="list")) > 0)
        (killed,) = waiting(stack)

        stack.start_component("triggerer", "second")
        wait_for(lambda: "Starting the triggerer" in stack.components["second"].log.read_text())
        stack.components["triggerer"].kill()
        asked = len(emulator.journal(operation="list"))
        wait_for(lambda: waiting(stack).total() == TASKS and killed not in waiting(stack))
        wait_for(lambda: len(emulator.journal(operation="list")) > asked)

        emulator.advance(3600)
        wait_for(lambda: stack.api.dag_run("many_waits", RUN_ID)["state"] != "running", pause=1)
        assert stack.api.dag_run("many_waits", RUN_ID)["state"] == "success"
        assert events(stack) == {index: ["running", "success"] for index in range(TASKS)}
        wait_for(lambda: 0 not in told(stack, batch_ids))  # a task's log may lag behind its state
        assert told(stack, batch_ids) == {1}
        assert fired(stack) <= TASKS
        wait_for(lambda: fired(stack) == TASKS)  # the triggerer's log may lag behind the scheduler
        receipts = [stack.api.xcom("many_waits", RUN_ID, "wait", map_index=index) for index in (0, TASKS - 1)]
        assert [one["batches"][0]["id"] for one in receipts] == [batch_ids[0], batch_ids[-1]]
        assert {call["operation"] for call in emulator.journal()} == {"create", "list"}
