"""Whole submissions on real Airflow: from files and queries, through pauses, with what cannot be sent left out."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task
from runs import clear_and_run, rendered, states, xcom
from tries import DEFAULTS, cancelled, paid, some_requests
from typer.testing import CliRunner

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    SqlRequests,
    poller,
    submit,
    watch,
)
from airflow_provider_claude_batch.cli import app


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "FIRST_TICK", 0.1)
    monkeypatch.setattr(watch, "MIN_INTERVAL", 0.2)
    monkeypatch.setattr(submit, "_FIRST_WAIT", 0.2)


def submit_dag(**arguments: Any) -> Any:
    @dag(schedule=None)
    def one_submission() -> None:
        ClaudeBatchOperator(task_id="submit", **{"defaults": DEFAULTS, **arguments})

    return one_submission()


def write_lines(path: Path, count: int) -> Path:
    lines = b"\n".join(json.dumps(request).encode() for request in some_requests(count))
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["requests.jsonl", "requests.jsonl.gz"])
def test_a_file_is_submitted_and_its_path_is_a_template(name: str, emulator: Any, run_dag: Any, tmp_path: Path) -> None:
    (tmp_path / "one_submission").mkdir()
    path = write_lines(tmp_path / "one_submission" / name, 5)
    run = run_dag(submit_dag(requests=f"{tmp_path}/{{{{ dag.dag_id }}}}/{name}"))
    receipt = xcom(run, "submit")
    assert run.state == "success"
    assert paid(emulator) == [5]
    assert receipt["source"] == {"uri": str(path)}
    assert rendered(run, "submit")[0]["requests"] == str(path)


def test_a_path_may_come_from_an_upstream_task(emulator: Any, run_dag: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "requests.jsonl", 2)

    @dag(schedule=None)
    def from_upstream() -> None:
        @task
        def export() -> str:
            return str(path)

        ClaudeBatchOperator(task_id="submit", requests=export(), defaults=DEFAULTS)

    run = run_dag(from_upstream())
    assert paid(emulator) == [2]
    assert xcom(run, "submit")["source"] == {"tasks": ["export"]}


def test_a_query_is_submitted_and_rendered(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "leads.sqlite", isolation_level=None)) as leads:
        leads.execute("CREATE TABLE leads (id INTEGER, note TEXT)")
        leads.executemany("INSERT INTO leads VALUES (?, ?)", [(n, f"Lead {n} {{{{ dag }}}}") for n in range(4)])
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "leads.sqlite")}
    monkeypatch.setenv("AIRFLOW_CONN_LEADS", json.dumps(connection))
    sql = "SELECT id, note, '{{ dag.dag_id }}' AS place FROM leads WHERE id < 3"
    run = run_dag(submit_dag(requests=SqlRequests("leads", sql, custom_id="id", prompt="note")))
    assert run.state == "success"
    batch_id = xcom(run, "submit")["batches"][0]["id"]
    texts = [request["params"]["messages"][0]["content"] for request in emulator.submitted(batch_id)]
    assert texts == [f"Lead {n} {{{{ dag }}}}" for n in range(3)]
    expected = "SELECT id, note, 'one_submission' AS place FROM leads WHERE id < 3"
    assert xcom(run, "submit")["source"] == {"conn_id": "leads", "sql": expected, "custom_id": "id"}
    assert expected in str(rendered(run, "submit")[0]["requests"])


def test_a_query_may_stand_in_a_file_beside_the_dag(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leads.sql").write_text("SELECT 1 AS custom_id, '{{ dag.dag_id }}' AS note")
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "leads.sqlite")}
    monkeypatch.setenv("AIRFLOW_CONN_LEADS", json.dumps(connection))

    @dag(schedule=None, template_searchpath=str(tmp_path))
    def from_a_file() -> None:
        ClaudeBatchOperator(
            task_id="submit", requests=SqlRequests("leads", "leads.sql", prompt="note"), defaults=DEFAULTS
        )

    run = run_dag(from_a_file())
    (request,) = emulator.submitted(xcom(run, "submit")["batches"][0]["id"])
    assert request["params"]["messages"][0]["content"] == "from_a_file"


def test_a_query_whose_file_is_missing_is_told_in_a_sentence(emulator: Any, run_dag: Any, capfd: Any) -> None:
    run = run_dag(submit_dag(requests=SqlRequests("leads", "leads.sql", prompt="note")))
    assert run.state == "failed"
    assert "There is no file leads.sql: it is looked for beside the Dag" in capfd.readouterr().out


def test_a_full_queue_is_waited_for_in_the_triggerer(emulator: Any, run_dag: Any, caplog: Any) -> None:
    caplog.set_level("INFO", "airflow_provider_claude_batch")
    emulator.fault("queue_full", after=1, times=2)
    run = run_dag(submit_dag(requests=some_requests(4), shard_size=2))
    output = caplog.text
    assert run.state == "success"
    assert paid(emulator) == [2, 2]
    assert output.count("The rest waits for room") == 2
    assert "1 of 2 batches accepted" in output
    assert len(xcom(run, "submit")["batches"]) == 2


@pytest.mark.parametrize("remembers", [True, False])
def test_a_lost_answer_is_settled_in_the_triggerer(
    remembers: bool, emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(ClaudeBatchOperator):
        """As on an Airflow that keeps nothing for a task."""

        def execute(self, context: Any) -> Any:
            context.pop("task_state_store")
            return super().execute(context)

        def resume(self, context: Any, event: Any) -> Any:
            context.pop("task_state_store")
            return super().resume(context, event)

    @dag(schedule=None)
    def settled() -> None:
        kind = ClaudeBatchOperator if remembers else Forgetful
        kind(task_id="submit", requests=some_requests(4), defaults=DEFAULTS, shard_size=2)

    emulator.fault("drop_after_accept", operation="create")
    run = run_dag(settled())
    assert run.state == "success"
    assert paid(emulator) == [2, 2]
    created = [call["batch_id"] for call in emulator.journal(operation="create")]
    assert [part["id"] for part in xcom(run, "submit")["batches"]] == created
    assert cancelled(emulator) == []


def test_skipped_requests_become_rows_of_the_submission(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    requests = some_requests(4)
    requests[1]["params"]["stream"] = True
    del requests[2]["params"]["messages"]

    @dag(schedule=None)
    def skipping() -> None:
        submit = ClaudeBatchOperator(task_id="submit", requests=requests, defaults=DEFAULTS, on_invalid="skip")
        wait = ClaudeBatchSensor(task_id="wait", batch=submit.output, poke_interval=5)
        ClaudeBatchResultsOperator(task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="answers")

    for _ in range(2):
        run = run_dag(skipping())
        assert states(run) == {"submit": "success", "wait": "success", "load": "success"}
    receipt = xcom(run, "load")
    found = warehouse.query(
        f"SELECT custom_id, status, error_message, retryable, batch_id FROM answers WHERE submission = "
        f"'{receipt['submission']}' AND status = 'errored' ORDER BY 1"
    )
    assert [(row[0], row[2], bool(row[3]), row[4]) for row in found] == [
        ("r-1", "batches do not take stream", False, receipt["submission"]),
        ("r-2", "messages must be a list that is not empty", False, receipt["submission"]),
    ]
    assert receipt["counts"] == {"succeeded": 2, "errored": 2}
    assert receipt["rows"] == 4


def test_a_cache_is_primed_in_the_triggerer(emulator: Any, run_dag: Any) -> None:
    system = "A style guide that all requests share. " * 500
    run = run_dag(
        submit_dag(requests=some_requests(4), prime_cache=True, defaults={**DEFAULTS, "system": system}, preflight=1)
    )
    receipt = xcom(run, "submit")
    assert [part["requests"] for part in receipt["batches"]] == [1, 3]
    assert receipt["preflight_usd"] > 0
    assert receipt["estimate_basis"].startswith("4 requests counted")


def test_a_choice_that_there_is_not_is_told_when_the_dag_is_parsed() -> None:
    with pytest.raises(Exception, match="on_invalid takes 'fail' or 'skip'"):
        submit_dag(requests=[], on_invalid="ignore")


def test_a_person_can_have_a_task_submit_anew(emulator: Any, run_dag: Any) -> None:
    from airflow.state import TaskScope, get_state_backend

    run = run_dag(submit_dag(requests=some_requests()))
    place = [run.dag_id, run.run_id, "submit"]
    told = CliRunner().invoke(app, ["forget", *place])
    assert told.exit_code == 0, told.output
    assert "3 requests, submitted at" in told.output
    assert get_state_backend().get(TaskScope(*place), "claude_batch_forget")
    for wrong in ([*place, "--map-index", "5"], [run.dag_id, run.run_id, "sumbit"], ["no", "such", "thing"]):
        told = CliRunner().invoke(app, ["forget", *wrong])
        assert told.exit_code == 1
        assert "There is no note of" in told.output


@pytest.mark.parametrize("reachable", ["here too", "only on workers", "gone"])
def test_a_task_can_submit_anew_where_the_workers_keep_notes_elsewhere(
    reachable: str, emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import external_state
    from airflow.sdk.execution_time import context

    backend = "AIRFLOW__WORKERS__STATE_STORE_BACKEND"
    monkeypatch.setenv(backend, "external_state.ExternalState")
    monkeypatch.setenv(external_state.FOLDER, str(tmp_path))
    monkeypatch.setattr(context, "_get_worker_state_store_backend", context._get_worker_state_store_backend.__wrapped__)
    run = run_dag(submit_dag(requests=some_requests()))
    assert list(tmp_path.glob("submit-claude_batch.json"))
    with monkeypatch.context() as elsewhere:
        if reachable == "only on workers":
            elsewhere.delenv(backend)
        if reachable == "gone":
            elsewhere.setenv(backend, "no_such_module.Backend")
        told = CliRunner().invoke(app, ["forget", run.dag_id, run.run_id, "submit"])
    assert told.exit_code == 0, told.output
    expected = "3 requests, submitted at" if reachable == "here too" else "a state backend that cannot be read here"
    assert expected in told.output
    clear_and_run(submit_dag(requests=some_requests()), run, "submit")
    assert paid(emulator) == [3, 3]


def test_a_secret_that_is_rendered_into_a_query_stays_out_of_the_receipt(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads = {"conn_type": "sqlite", "host": str(tmp_path / "leads.sqlite")}
    monkeypatch.setenv("AIRFLOW_CONN_LEADS", json.dumps(leads))
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http", "password": "hunter22-of-the-test"}))
    sql = "SELECT 1 AS id, 'Hello' AS note WHERE '{{ conn.other.password }}' > ''"
    run = run_dag(submit_dag(requests=SqlRequests("leads", sql, custom_id="id", prompt="note")))
    receipt = xcom(run, "submit")
    assert receipt["requests"] == 1
    assert "source" not in receipt
    assert "hunter22-of-the-test" not in json.dumps([receipt, rendered(run, "submit")])


def test_a_note_never_expires(emulator: Any, run_dag: Any) -> None:
    from airflow.models.task_state_store import TaskStateStoreModel as Kept
    from airflow.utils.session import create_session
    from sqlalchemy import select

    run = run_dag(submit_dag(requests=some_requests()))
    with create_session() as session:
        found = dict(session.execute(select(Kept.key, Kept.expires_at).where(Kept.run_id == run.run_id)).all())
    assert {"claude_batch", "claude_batch_claim"} < found.keys()
    assert set(found.values()) == {None}
