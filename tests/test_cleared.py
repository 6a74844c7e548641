"""Cleared runs: a retry that is the same as before belongs to the submission that is there now, and is paid once."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Variable, dag, task
from runs import clear_and_run, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch, operators, receipt, tally
from airflow_provider_claude_batch.forget import forget
from airflow_provider_claude_batch.page.archive import Archive
from airflow_provider_claude_batch.submission import State, Submission

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture(params=["duckdb", "postgres"])
def answers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


def pipeline(**arguments: Any) -> Any:
    @dag(schedule=None)
    def cleared() -> None:
        @task
        def build() -> list[dict[str, Any]]:
            late = {
                "custom_id": "late",
                "params": {"max_tokens": 500, "messages": [{"role": "user", "content": "Late"}]},
            }
            return [*some_requests(4), *([late] if Variable.get("is_late", "") else [])]

        place = {"warehouse_conn_id": "warehouse", "table": "answers"}
        claude_batch("labels", requests=build(), **{"defaults": DEFAULTS, "rounds": 1, **place, **arguments})

    return cleared()


def on_the_page(run: Any) -> list[Submission]:
    submissions = Archive().view(frozenset({run.dag_id})).submissions
    return [one for one in submissions if (run.dag_id, run.run_id) in one.places]


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["a late request", "forgotten"])
def test_a_retry_that_is_the_same_as_before_belongs_to_the_new_submission(
    is_forgotten: bool, emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    run = run_dag(pipeline())
    old = xcom(run, "labels.submit_2")
    (first,), paid = (xcom(run, "labels.load")[name] for name in ("batches", "cost_usd"))
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    if is_forgotten:
        forget("cleared", run.run_id, "labels.submit")
        clear_and_run(pipeline(), run, "labels.submit")
    else:
        monkeypatch.setenv("AIRFLOW_VAR_IS_LATE", "yes")
        clear_and_run(pipeline(), run, "build")
    count = 4 if is_forgotten else 5
    assert [call["requests"] for call in emulator.journal(operation="create")] == [4, 1, count]

    submit, again, total = (xcom(run, f"labels.{name}") for name in ("submit", "submit_2", "total"))
    assert old["submission"] < submit["submission"] == again["submission"] == total["submission"]
    assert (again["batches"], again["attempt"]) == (old["batches"], 2)
    assert (total["counts"], total["retryable"], total["rounds"]) == ({"succeeded": count}, 0, 2)

    (replaced,) = total["abandoned"]
    assert (replaced["id"], replaced["requests"], replaced["cost_usd"]) == (first["id"], 4, paid)
    assert (replaced["counts"]["succeeded"], replaced["counts"]["errored"]) == (3, 1)
    assert paid > 0

    (again_id,) = [part["id"] for part in again["batches"]]
    named = f"SELECT DISTINCT submission, attempt FROM answers WHERE batch_id = '{again_id}'"
    assert answers.query(named) == [(submit["submission"], 2)]
    usable = "status = 'succeeded' AND problem IS NULL"
    for view in ("answers_latest", "answers_current"):
        assert answers.query(f"SELECT count(*) FROM {view} WHERE {usable}") == [(count,)]
    assert answers.query("SELECT DISTINCT submission FROM answers_latest") == [(submit["submission"],)]

    (shown,) = on_the_page(run)
    assert (shown.id, [one.receipt.attempt for one in shown.rounds]) == (submit["submission"], [1, 2])
    assert (shown.state({}, shown.submitted_at), shown.outcomes({})) == (State.LOADED, {"succeeded": count})


def test_truncated_answers_are_sent_again_after_a_clear_too(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = pipeline(defaults={**DEFAULTS, "max_tokens": 3}, retry_defaults={"max_tokens": 512})
    run = run_dag(short)
    monkeypatch.setenv("AIRFLOW_VAR_IS_LATE", "yes")
    clear_and_run(short, run, "build")
    total = xcom(run, "labels.total")
    assert (total["counts"], total["problems"], total["rounds"]) == ({"succeeded": 5}, {}, 2)


def test_another_try_of_a_retry_that_was_all_sent_needs_no_table(
    emulator: Any, run_dag: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[str] = []
    push = operators.push

    def die_when_all_is_sent(context: Any, receipts: Any, **kwargs: Any) -> Any:
        pushed = push(context, receipts, **kwargs)
        if context["ti"].task_id == "labels.submit_2" and receipts[0].batches:
            died.append("")
            if len(died) == 2:
                answers.query("DELETE FROM answers")
                raise RuntimeError("The worker dies.")
        return pushed

    monkeypatch.setattr(operators, "push", die_when_all_is_sent)
    monkeypatch.setattr(receipt, "INLINE_IDS", 2)
    monkeypatch.setattr(tally, "INLINE_IDS", 2)
    emulator.fault("row", outcome="overloaded_error", match="hello", times=4)
    run = run_dag(pipeline(default_args={"retries": 1, "retry_delay": timedelta()}))
    assert len(died) > 2
    assert run.state == "success"
    assert [call["requests"] for call in emulator.journal(operation="create")] == [4, 4]
