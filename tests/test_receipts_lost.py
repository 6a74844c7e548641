"""What a run was told before: XComs of tasks that are skipped now, and of tasks that somebody marked a success."""

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Variable, dag, task, task_group
from runs import clear_and_run, mark_success, states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch, load
from airflow_provider_claude_batch.errors import IncompleteResults, WaitTimeout
from airflow_provider_claude_batch.sensor import ClaudeBatchSensor

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


@dag(schedule=None)
def told() -> None:
    @task
    def build() -> list[dict[str, Any]]:
        return some_requests(int(Variable.get("requests", "4")))

    @task
    def publish(total: dict[str, Any]) -> list[str]:
        return [total["submission"]]

    place = {"warehouse_conn_id": "warehouse", "table": "answers"}
    publish(claude_batch("labels", requests=build(), defaults=DEFAULTS, rounds=1, **place).output)


@dag(schedule=None)
def told_for_each() -> None:
    @task
    def build() -> list[list[dict[str, Any]]]:
        return [some_requests(2), some_requests(int(Variable.get("requests", "4")), text="Other")]

    @task_group
    def each(requests: Any) -> None:
        place = {"warehouse_conn_id": "warehouse", "table": "answers"}
        claude_batch("labels", requests=requests, defaults=DEFAULTS, rounds=1, **place)

    each.expand(requests=build())


def test_what_a_cleared_run_said_before_is_published_no_more(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_dag(told())
    assert xcom(run, "publish") == [xcom(run, "labels.submit")["submission"]]
    monkeypatch.setenv("AIRFLOW_VAR_REQUESTS", "0")
    again = clear_and_run(told(), run, "build")
    assert {name: state for name, state in states(again).items() if state != "skipped"} == {"build": "success"}


def test_in_a_mapped_group_each_total_looks_at_its_own_tasks(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="Other 1", times=1)
    run = run_dag(told_for_each())
    assert run.state == "success"
    monkeypatch.setenv("AIRFLOW_VAR_REQUESTS", "0")
    again = clear_and_run(told_for_each(), run, "build")
    totals = {ti.map_index: ti.state for ti in again.get_task_instances() if ti.task_id == "each.labels.total"}
    assert totals == {0: "success", 1: "success"}
    told, empty = (xcom(again, "each.labels.total", map_index=index) for index in (0, 1))
    assert told["counts"] == {"succeeded": 2}
    assert (empty["requests"], empty["counts"], empty["batches"]) == (0, {"succeeded": 0}, [])


def test_a_wait_that_was_marked_a_success_does_not_lose_what_is_paid(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def give_up(*_: Any) -> None:
        raise WaitTimeout("1 of the batches had not ended.")

    with monkeypatch.context() as patched:
        patched.setattr(ClaudeBatchSensor, "_wait", give_up)
        run = run_dag(told())
    mark_success(run, "labels.wait")
    again = clear_and_run(told(), run, "labels.load")
    assert again.state == "failed"
    assert "labels.wait is marked a success and has left no receipt" in capfd.readouterr().out
    whole = clear_and_run(told(), run, "labels.wait")
    assert whole.state == "success"
    assert answers.query("SELECT count(*) FROM answers") == [(4,)]
    assert len(emulator.journal(operation="create")) == 1


def test_who_marks_a_load_a_success_in_spite_of_its_verdict_goes_on_with_what_it_wrote(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise IncompleteResults("1 requests are in no line of the results; all others are written.")

    with monkeypatch.context() as patched:
        patched.setattr(load, "judge", fail)
        run = run_dag(told())
    assert run.state == "failed"
    mark_success(run, "labels.load")
    again = clear_and_run(told(), run, "labels.submit_2")
    assert again.state == "success"
    assert xcom(again, "labels.total")["counts"] == {"succeeded": 4}
    assert xcom(again, "publish") == [xcom(run, "labels.submit")["submission"]]
