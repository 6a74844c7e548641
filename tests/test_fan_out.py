"""Each batch of a submission waited for and loaded by itself."""

from typing import Any

import pytest
from airflow.sdk import dag
from runs import states, xcom
from tries import DEFAULTS, some_requests

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
        wait = ClaudeBatchSensor.partial(task_id="wait", poke_interval=5).expand(batch=shards(submit.output))
        load = ClaudeBatchResultsOperator.partial(
            task_id="load", warehouse_conn_id="warehouse", table="answers"
        ).expand(batch=wait.output)
        ClaudeBatchOperator(task_id="retry", requests=requests, retry_of=load.output, defaults=DEFAULTS)

    return fan()


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
