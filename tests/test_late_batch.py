"""Five batches on a real Airflow, each loaded as it ends: the third is late, and the wait of the fourth fails."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator import CONNECTION, Emulator
from stack import Stack
from warehouse import connect_warehouse

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1_800)]
EMULATOR = ("--batch-seconds", "60")
PATIENCE = 300
ENDS = (100, 200, 900, 7_200, 300)  # seconds of the emulator's clock after which each batch has ended
DAG = """
from airflow.sdk import dag
from airflow_provider_claude_batch import claude_batch


@dag(schedule=None)
def five():
    claude_batch(
        "labels",
        requests=[
            {"custom_id": f"r-{n}", "params": {"messages": [{"role": "user", "content": f"hello {n}"}]}}
            for n in range(10)
        ],
        defaults={"model": "claude-haiku-4-5", "max_tokens": 512},
        shard_size=2,
        fan_out=True,
        rounds=1,
        poke_interval=5,
        warehouse_conn_id="warehouse",
        table="labels",
    )


five()
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


@pytest.fixture
def stack(tmp_path: Path, emulator: Emulator, answers: Any) -> Iterator[Stack]:
    """An Airflow whose API has a clock that stands still, and ends batches out of order."""
    emulator.clock(freeze=True)
    for seconds in ENDS:
        emulator.fault("slow_batch", seconds=seconds, times=1)
    emulator.fault("row", outcome="overloaded_error", match="hello [17]", times=1)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "five.py").write_text(DAG)
    connections = {
        "anthropic_default": {**CONNECTION, "host": emulator.base_url},
        "warehouse": {"conn_type": "duckdb", "host": str(answers.path)},
    }
    with Stack(tmp_path / "airflow", tmp_path / "dags", connections) as stack:
        stack.wait_healthy()
        stack.api.wait_dag("five")
        yield stack


class Run:
    """One run of the Dag, and how its tasks stand."""

    def __init__(self, stack: Stack) -> None:
        self.api = stack.api
        self.id = stack.api.trigger("five")

    def instances(self, task_id: str) -> dict[int, dict[str, Any]]:
        found = self.api.task_instances("five", self.id)
        return {one["map_index"]: one for one in found if one["task_id"] == f"labels.{task_id}"}

    def states(self, task_id: str) -> list[str | None]:
        return [one["state"] for _, one in sorted(self.instances(task_id).items())]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, [
                (one["task_id"], one["map_index"], one["state"]) for one in self.api.task_instances("five", self.id)
            ]
            time.sleep(0.5)

    def wait_until(self, task_id: str, *states: str | None) -> None:
        self.wait_for(lambda: self.states(task_id) == [*states])

    def fail(self, task_id: str, map_index: int) -> None:
        path = f"/dags/five/dagRuns/{self.id}/taskInstances/labels.{task_id}/{map_index}"
        self.api.call("PATCH", path, json={"new_state": "failed"})

    def clear(self, task_id: str, map_index: int) -> None:
        """Clear a task and what is after it, as a person does in the UI."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.id, "include_downstream": True}
        body |= {"task_ids": [[f"labels.{task_id}", map_index]], "reset_dag_runs": True}
        self.api.call("POST", "/dags/five/clearTaskInstances", json=body)

    def loaded_at(self) -> dict[int, str]:
        return {index: one["end_date"] for index, one in self.instances("load").items() if one["state"] == "success"}


def test_each_batch_is_loaded_as_it_ends_whatever_becomes_of_the_others(
    stack: Stack, emulator: Emulator, answers: Any
) -> None:
    run = Run(stack)
    run.wait_until("wait", *["deferred"] * 5)
    emulator.advance(100)
    run.wait_until("load", "success", None, None, None, None)
    emulator.advance(100)
    run.wait_until("load", "success", "success", None, None, None)
    run.fail("wait", 3)
    run.wait_until("load", "success", "success", None, "upstream_failed", None)
    emulator.advance(100)
    run.wait_until("load", "success", "success", None, "upstream_failed", "success")
    assert answers.query("SELECT count(*) FROM labels") == [(6,)]
    assert run.states("submit_2") == [None]

    emulator.advance(600)
    run.wait_until("wait_2", "deferred")
    loaded_at = run.loaded_at()
    assert sorted(loaded_at, key=lambda index: loaded_at[index]) == [0, 1, 4, 2]
    assert loaded_at[4] < run.instances("wait")[2]["end_date"]
    emulator.advance(60)
    assert stack.api.wait_run("five", run.id) == "failed"
    assert run.states("wait_2") == ["success"], stack.api.task_log("five", run.id, "labels.wait_2")
    assert (run.states("load_2"), run.states("total")) == (["success"], ["failed"])
    total = stack.api.xcom("five", run.id, "labels.total")
    assert (total["requests"], total["counts"]) == (10, {"succeeded": 8, "missing": 2})
    assert total["not_loaded"] == [part["id"] for part in total["batches"] if "ended_at" not in part]
    said = "\n".join(stack.api.task_log("five", run.id, "labels.total"))
    assert "labels.wait[3] failed. Paid and not loaded: 1 batch" in said

    paid = len(emulator.journal(operation="create"))
    emulator.advance(7_200)
    run.clear("wait", 3)
    run.wait_until("total", "success")
    total = stack.api.xcom("five", run.id, "labels.total")
    assert (total["requests"], total["counts"]) == (10, {"succeeded": 10})
    assert len(emulator.journal(operation="create")) == paid
