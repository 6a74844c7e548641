"""Whole nights with failures in every round: the table, the total and the bill agree."""

import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task
from runs import xcom
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch

# As many as one likes: CLAUDE_BATCH_REQUESTS=10000 is a night as people have them.
REQUESTS = int(os.environ.get("CLAUDE_BATCH_REQUESTS", "1000"))
HUNDREDS = REQUESTS // 100
# Of each hundred orders these fail; of the second tries a few more, and of the third ones none:
# drawn by chance, a night would end a round too soon, or a round too late, once in a while.
FAILURES = {
    "overloaded_error": (r"order \d*(07|37|67)\.", 3 * HUNDREDS + 5),
    "expired": (r"order \d*11\.", HUNDREDS + 2),
    "truncated": (r"order \d*42\.", HUNDREDS),
    "invalid_request_error": (r"order \d*93\.", -1),
}
EMULATOR = "--batch-seconds", "0"
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 512}


@pytest.fixture(params=["duckdb", "postgres"])
def answers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


def night(count: int = REQUESTS, word: str = "Summarize", **arguments: Any) -> Any:
    @dag(schedule=None)
    def night() -> None:
        @task(show_return_value_in_logs=False)
        def build() -> list[dict[str, Any]]:
            return [
                {"custom_id": f"n-{n}", "params": {"messages": [{"role": "user", "content": f"{word} order {n:02}."}]}}
                for n in range(count)
            ]

        claude_batch(
            "orders",
            requests=build(),
            defaults=DEFAULTS,
            retry_defaults=[{"max_tokens": 512 * 2**attempt} for attempt in (1, 2, 3)],
            warehouse_conn_id="warehouse",
            table="orders",
            rounds=3,
            **arguments,
        )

    return night()


def test_every_round_takes_up_what_failed_and_the_total_is_the_tables(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    for outcome, (orders, times) in FAILURES.items():
        emulator.fault("row", outcome=outcome, match=orders, times=times)
    run = run_dag(night())
    assert run.state == "success"
    total = xcom(run, "orders.total")
    statuses = dict(answers.query("SELECT status, count(*) FROM orders_latest GROUP BY status"))
    assert statuses == total["counts"] == {"succeeded": REQUESTS - HUNDREDS, "errored": HUNDREDS}
    assert total["requests"] == REQUESTS
    left = answers.query("SELECT error_type, problem, retryable, error_message FROM orders_errors")
    assert {row[:3] for row in left} == {("invalid_request_error", None, False)}
    assert all(message for *_, message in left)

    rounds = answers.query(
        "SELECT attempt, count(*), count(DISTINCT custom_id) FROM orders GROUP BY attempt ORDER BY 1"
    )
    sizes = [part["requests"] for part in total["batches"]]
    assert [(rows, ids) for _, rows, ids in rounds] == [(size, size) for size in sizes]
    assert sizes == [REQUESTS, 5 * HUNDREDS, 7]
    again = "SELECT count(*) FROM orders WHERE attempt = {} AND retryable"
    assert [answers.query(again.format(attempt))[0][0] for attempt in range(1, len(sizes))] == sizes[1:]
    assert answers.query("SELECT count(*) FROM orders")[0][0] == total["rows"] == sum(sizes)
    ((cost, live),) = answers.query("SELECT sum(cost_usd), sum(live_cost_usd) FROM orders")
    assert (total["cost_usd"], total["live_cost_usd"]) == pytest.approx((float(cost), float(live)), abs=1e-5)
