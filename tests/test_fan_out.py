"""Each batch of a submission waited for and loaded by itself."""

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task_group
from runs import clear_and_run, forget_receipts, instances, states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    claude_batch,
    receipt,
    shards,
)
from airflow_provider_claude_batch.fan_out import split
from airflow_provider_claude_batch.receipt import Abandoned, Part, Receipt, replace

EMULATOR = ("--batch-seconds", "0")


def fanned_out_dag(requests: list[dict[str, Any]]) -> Any:
    @dag(schedule=None)
    def fan() -> None:
        submit = ClaudeBatchOperator(
            task_id="submit", requests=requests, defaults=DEFAULTS, shard_size=2, on_invalid="skip"
        )

        @task_group(prefix_group_id=False)
        def each_batch(batch: Any) -> Any:
            wait = ClaudeBatchSensor(task_id="wait", batch=batch, poke_interval=5)
            load = ClaudeBatchResultsOperator(
                task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="answers"
            )
            return load.output

        loaded = each_batch.expand(batch=shards(submit.output))
        ClaudeBatchOperator(task_id="retry", requests=requests, retry_of=loaded, defaults=DEFAULTS)

    return fan()


def pipeline(count: int = 6, **arguments: Any) -> Any:
    given = {"shard_size": 2, "fan_out": True, "rounds": 1, "warehouse_conn_id": "warehouse", "table": "answers"}

    @dag(schedule=None)
    def fanned_out() -> None:
        claude_batch("labels", requests=some_requests(count), defaults=DEFAULTS, **{**given, **arguments})

    return fanned_out()


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


def test_each_batch_is_waited_for_and_loaded_by_itself(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    requests = some_requests(6)
    requests[5]["params"]["stream"] = True
    emulator.fault("row", outcome="overloaded_error", match="hello 3")
    run = run_dag(fanned_out_dag(requests))
    assert set(states(run).values()) == {"success"}
    receipts = [xcom(run, "load", map_index=n) for n in range(3)]
    assert [[part["requests"] for part in one["batches"]] for one in receipts] == [[2], [2], [1]]
    assert [one["rows"] for one in receipts] == [3, 2, 1]  # what was skipped goes with the first
    assert warehouse.query("SELECT count(*) FROM answers") == [(6,)]
    assert xcom(run, "retry")["requests"] == 1
    assert xcom(run, "retry")["submission"] == receipts[0]["submission"]


def test_nothing_to_wait_for_is_skipped(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    run = run_dag(fanned_out_dag([]))
    assert set(states(run).values()) == {"skipped"}


def test_what_belongs_to_all_batches_goes_with_the_first() -> None:
    parts = (Part("a", 2, first=0), Part("b", 1, first=2))
    whole = Receipt("sub", parts, requests=3, estimate_usd=5.0, reused=4, invalid={"why": ("x",)})
    whole = replace(whole, preflight_usd=1.0, preflight_unpriced=1, abandoned=(Abandoned("c", 9),))
    first, second = split(whole, 1024)
    assert (first.requests, first.estimate_usd, first.reused, first.is_beginning) == (2, 5.0, 4, True)
    assert (second.requests, second.estimate_usd, second.reused, second.is_beginning) == (1, None, None, False)
    assert (first.preflight_usd, first.preflight_unpriced, first.abandoned) == (1.0, 1, whole.abandoned)
    assert (second.preflight_usd, second.preflight_unpriced, second.abandoned) == (None, None, None)
    assert first.invalid == second.invalid == whole.invalid  # whoever reads the source again passes over it


def test_what_is_more_than_airflow_maps_over_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple(Part(f"batch_{n}", n + 1, first=n) for n in range(7))
    whole = Receipt("sub", parts, requests=28)
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "3")
    found = [receipt.read(one)[0] for one in shards.function(whole.to_dict())]
    assert [one.batch_ids for one in found] == [
        ("batch_0", "batch_1", "batch_2"),
        ("batch_3", "batch_4", "batch_5"),
        ("batch_6",),
    ]
    assert [one.requests for one in found] == [6, 15, 7]


def test_where_everything_was_reused_the_whole_is_what_passes_through() -> None:
    whole = Receipt("sub", reused=3)
    assert split(whole, 1024) == [whole]
    assert whole.is_beginning


def test_a_batch_is_loaded_while_another_is_still_waited_for(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(pipeline())
    waiting = clear_and_run(
        pipeline(), run, "labels.wait", held=lambda ti: (ti.task_id, ti.map_index) == ("labels.wait", 2)
    )
    found = instances(waiting)
    assert [found["labels.wait", index] for index in range(3)] == ["success", "success", "scheduled"]
    assert [found["labels.load", index] for index in range(3)] == ["success", "success", None]
    assert found["labels.submit_2", -1] is None


def test_a_wait_that_fails_holds_back_no_other_batch(emulator: Any, run_dag: Any, answers: Any, capfd: Any) -> None:
    emulator.fault("slow_batch", seconds=4_000)
    emulator.fault("row", outcome="overloaded_error", match="hello 3", times=1)
    run = run_dag(pipeline(timeout=1))
    found = instances(run)
    assert [found["labels.wait", index] for index in range(3)] == ["failed", "success", "success"]
    assert [found["labels.load", index] for index in range(3)] == ["upstream_failed", "success", "success"]
    assert (found["labels.load_2", -1], found["labels.total", -1], run.state) == ("success", "failed", "failed")
    total, late = xcom(run, "labels.total"), xcom(run, "labels.submit")["batches"][0]["id"]
    assert (total["requests"], total["counts"], total["not_loaded"]) == (6, {"succeeded": 4, "missing": 2}, [late])
    assert f"labels.wait[0] failed. Paid and not loaded: 1 batch, {late}." in capfd.readouterr().out
    assert answers.query("SELECT count(*) FROM answers") == [(5,)]

    emulator.advance(4_000)
    whole = clear_and_run(pipeline(timeout=1), run, "labels.wait")
    assert whole.state == "success"
    assert xcom(whole, "labels.total")["counts"] == {"succeeded": 6}
    assert len(emulator.journal(operation="create")) == 4


def test_what_was_sent_again_before_a_late_batch_was_loaded_is_not_paid_twice(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("slow_batch", seconds=4_000)
    emulator.fault("row", outcome="overloaded_error", match="hello [13]", times=2)
    run = run_dag(pipeline(timeout=1))
    assert xcom(run, "labels.submit_2")["requests"] == 1
    before = xcom(run, "labels.load_2")["batches"]

    emulator.advance(4_000)
    for _ in range(2):
        whole = clear_and_run(pipeline(timeout=1), run, "labels.wait")
        assert whole.state == "success"
        assert [call["requests"] for call in emulator.journal(operation="create")] == [2, 2, 2, 1, 1]
        again, total = xcom(whole, "labels.submit_2"), xcom(whole, "labels.total")
        assert again["requests"] == 2
        assert again["batches"][0]["id"] == before[0]["id"]
        assert (total["counts"], total["rows"]) == ({"succeeded": 6}, 8)


def test_a_submission_that_fails_half_way_is_not_added_up_in_silence(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    emulator.fault("status", status=400, operation="create", after=1, times=-1)
    run = run_dag(pipeline())
    assert states(run)["labels.total"] == "failed"
    assert xcom(run, "labels.total") is None
    total = xcom(run, "labels.total", key="claude_batch")
    assert (total["counts"], len(total["not_loaded"])) == ({"missing": 2}, 1)
    assert "labels.submit failed. Paid and not loaded: 1 batch" in capfd.readouterr().out


def test_nothing_that_was_submitted_is_said_where_the_submission_fails(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    run = run_dag(pipeline(max_requests=5))
    assert states(run)["labels.total"] == "failed"
    assert "labels.submit failed. Nothing was submitted." in capfd.readouterr().out


def test_the_last_wait_may_be_skipped_at_its_deadline_and_what_is_missing_counts(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    emulator.fault("slow_batch", seconds=4_000)
    run = run_dag(pipeline(timeout=1, soft_fail=True))
    assert run.state == "success"
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 4, "missing": 2}
    assert "Paid and not loaded: 1 batch" in capfd.readouterr().out
    emulator.fault("slow_batch", seconds=4_000)
    judged = run_dag(pipeline(timeout=1, soft_fail=True, max_error_rate=0.3))
    assert states(judged)["labels.total"] == "failed"
    assert "2 of 6 requests have no usable answer" in capfd.readouterr().out


@pytest.mark.parametrize("marked", [[1], [0, 1, 2]])
def test_loads_that_are_a_success_and_left_no_receipt_are_missed(
    marked: list[int], emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    """A person marked them a success, or they were marked after they had died."""
    run = run_dag(pipeline(rounds=0))
    for index in marked:
        forget_receipts(run, "labels.load", index)
    again = clear_and_run(pipeline(rounds=0), run, "labels.total")
    assert again.state == "failed"
    assert "labels.load is marked a success and has left no receipt" in capfd.readouterr().out


def test_the_total_counts_what_loads_without_a_receipt_have_left_out(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(pipeline(rounds=0))
    forget_receipts(run, "labels.load", 1)
    total = xcom(clear_and_run(pipeline(rounds=0), run, "labels.total"), "labels.total")
    assert (total["requests"], total["counts"]) == (6, {"succeeded": 4, "missing": 2})
    assert total["not_loaded"] == [xcom(run, "labels.submit")["batches"][1]["id"]]


def reusing_dag(requests: list[dict[str, Any]]) -> Any:
    @dag(schedule=None)
    def reusing() -> None:
        claude_batch(
            "enrich",
            requests=requests,
            defaults=DEFAULTS,
            shard_size=2,
            fan_out=True,
            reuse_from=("warehouse", "answers"),
            warehouse_conn_id="warehouse",
            table="answers",
        )

    return reusing()


def test_what_is_reused_counts_once_and_a_night_without_changes_passes_through(
    emulator: Any, run_dag: Any, warehouse: Any
) -> None:
    run_dag(reusing_dag(some_requests(3)))
    grown = run_dag(reusing_dag(some_requests(8)))
    assert len(xcom(grown, "enrich.submit")["batches"]) == 3
    assert xcom(grown, "enrich.total")["reused"] == 3
    same = run_dag(reusing_dag(some_requests(8)))
    assert same.state == "success"
    passed = {"submit", "shards", "wait", "load", "total"}
    assert {name.partition(".")[2] for name, state in states(same).items() if state == "success"} == passed
    assert xcom(same, "enrich.total")["reused"] == 8
    assert warehouse.query("SELECT count(*) FROM answers") == [(8,)]
