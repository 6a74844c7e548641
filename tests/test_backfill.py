"""A week at once, on a real Airflow: runs that share ids and a table do not touch one another, and clearing is free."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator import CONNECTION, Emulator
from stack import Stack
from warehouse import connect_warehouse
from warehouse_postgres import airflow_database

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1_800)]
# Some tickets fail, each at most as often as there are retries: by chance, one would fail every time some night.
FAILURES = [f"--fault=row:outcome=overloaded_error,match=ticket {n}$,times=3" for n in range(3, 40, 4)]
EMULATOR = ("--batch-seconds", "2-6", *FAILURES)
DAYS, REQUESTS = 7, 40
DAG = """
import pendulum
from airflow.sdk import Variable, dag, task
from airflow_provider_claude_batch import claude_batch


@dag(schedule="@daily", start_date=pendulum.datetime(2026, 11, 1, tz="UTC"), catchup=False, max_active_runs=7)
def week():
    @task(show_return_value_in_logs=False)
    def build():
        word = Variable.get("word", "Label")
        return [
            {"custom_id": f"t-{n}", "params": {"messages": [{"role": "user", "content": f"%s ticket {n}" % word}]}}
            for n in range(REQUESTS)
        ]

    claude_batch(
        "labels",
        requests=build(),
        defaults={"model": "claude-haiku-4-5", "max_tokens": 512},
        warehouse_conn_id="warehouse",
        table="labels",
        poke_interval=5,
        rounds=3,
        retry_defaults=[{"max_tokens": 1024}, {"max_tokens": 2048}],
    )


week()
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


@pytest.fixture
def database() -> Iterator[str]:
    """A PostgreSQL for Airflow itself, which makes no backfills on SQLite."""
    with airflow_database() as database:
        yield database


@pytest.fixture
def stack(tmp_path: Path, emulator: Emulator, answers: Any, database: str) -> Iterator[Stack]:
    """An Airflow with the Dag of a week."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "week.py").write_text(DAG.replace("REQUESTS", str(REQUESTS)))
    connections = {
        "anthropic_default": {**CONNECTION, "host": emulator.base_url},
        "warehouse": {"conn_type": "duckdb", "host": str(answers.path)},
    }
    env = {"AIRFLOW__CORE__PARALLELISM": "8", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}
    with Stack(tmp_path / "airflow", tmp_path / "dags", connections, env) as stack:
        stack.wait_healthy()
        stack.api.wait_dag("week")
        yield stack


def backfill(stack: Stack) -> list[dict[str, Any]]:
    """Run a week of days at once, and return the runs."""
    body = {"dag_id": "week", "from_date": "2026-11-01T00:00:00Z", "to_date": "2026-11-07T00:00:00Z"}
    stack.api.call("PATCH", "/dags/week", json={"is_paused": False})
    stack.api.call("POST", "/backfills", json={**body, "max_active_runs": DAYS, "run_backwards": False})
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        every = stack.api.get("/dags/week/dagRuns", limit=50)["dag_runs"]
        runs = [run for run in every if run["run_type"] == "backfill"]
        if len(runs) == DAYS and all(run["state"] in {"success", "failed"} for run in every):
            return runs
        time.sleep(1)
    raise TimeoutError(json.dumps(stack.api.get("/dags/week/dagRuns", limit=50))[:2000])


def clear(stack: Stack, run_id: str, *task_ids: str) -> str:
    """Clear tasks and what is after them, as a person does in the UI, and return how the run ends."""
    body = {
        "dry_run": False,
        "only_failed": False,
        "dag_run_id": run_id,
        "task_ids": list(task_ids),
        "include_downstream": True,
        "reset_dag_runs": True,
    }
    stack.api.call("POST", "/dags/week/clearTaskInstances", json=body)
    time.sleep(1)
    return stack.api.wait_run("week", run_id, timeout=600)


def rows(answers: Any, run_id: str) -> list[tuple[Any, ...]]:
    return sorted(
        answers.query(
            f"SELECT submission, attempt, batch_id, custom_id, status, text, message_id, cost_usd FROM labels "
            f"WHERE run_id = '{run_id}'"
        ),
        key=str,
    )


def latest(answers: Any, run_id: str) -> list[tuple[Any, ...]]:
    return answers.query(f"SELECT custom_id, status, problem, text FROM labels_latest WHERE run_id = '{run_id}'")


def test_a_week_at_once_is_seven_complete_sets_and_clearing_them_is_free(
    stack: Stack, emulator: Emulator, answers: Any
) -> None:
    runs = backfill(stack)
    assert [run["state"] for run in runs] == ["success"] * DAYS
    for run in runs:
        found = latest(answers, run["dag_run_id"])
        assert sorted(custom_id for custom_id, *_ in found) == sorted(f"t-{n}" for n in range(REQUESTS))
        assert {status for _, status, *_ in found} == {"succeeded"}
        total = stack.api.xcom("week", run["dag_run_id"], "labels.total")
        assert total["counts"] == {"succeeded": REQUESTS}
        assert total["rows"] == len(rows(answers, run["dag_run_id"]))
    ((batches, submissions, all_runs),) = answers.query(
        "SELECT count(DISTINCT batch_id), count(DISTINCT submission), count(DISTINCT run_id) FROM labels"
    )
    created = emulator.journal(operation="create")
    assert (batches, submissions) == (len(created), all_runs)
    assert len(created) > DAYS

    run_id = runs[0]["dag_run_id"]
    before, others = rows(answers, run_id), rows(answers, runs[1]["dag_run_id"])
    for task_id in ("labels.load", "labels.submit", "build"):
        assert clear(stack, run_id, task_id) == "success"
        assert rows(answers, run_id) == before
    assert len(emulator.journal(operation="create")) == len(created)

    stack.api.call("POST", "/variables", json={"key": "word", "value": "Translate"})
    assert clear(stack, run_id, "build") == "success"
    assert len(emulator.journal(operation="create")) > len(created)
    assert rows(answers, runs[1]["dag_run_id"]) == others
    submission = stack.api.xcom("week", run_id, "labels.total")["submission"]
    shown = answers.query(f"SELECT DISTINCT submission FROM labels_latest WHERE run_id = '{run_id}'")
    assert shown == [(submission,)]
    assert len(latest(answers, run_id)) == REQUESTS
