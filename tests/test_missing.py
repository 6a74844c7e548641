"""Requests that no line of the results speaks of: they become rows where the source says which they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task
from runs import states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    SqlRequests,
    shards,
)

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("sqlite", tmp_path, monkeypatch)


@task
def build() -> list[dict[str, Any]]:
    return some_requests(9)


@task
def build_part(part: int) -> list[dict[str, Any]]:
    return [{**request, "custom_id": f"{part}-{request['custom_id']}"} for request in some_requests(3)]


def load(batch: Any) -> ClaudeBatchResultsOperator:
    return ClaudeBatchResultsOperator(task_id="load", batch=batch, warehouse_conn_id="warehouse", table="answers")


def submit(**arguments: Any) -> ClaudeBatchOperator:
    return ClaudeBatchOperator(task_id="submit", defaults=DEFAULTS, **arguments)


def pipeline(wire: Any, *arguments: Any) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        wire(*arguments)

    return pipeline()


def file_of(folder: Path) -> str:
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in some_requests(9)))
    return str(path)


def query_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SqlRequests:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "source.sqlite")) as con:
        con.execute("CREATE TABLE leads (id TEXT, body TEXT)")
        con.executemany("INSERT INTO leads VALUES (?, ?)", [(f"r-{n}", f"hello {n}") for n in range(9)])
        con.commit()
    monkeypatch.setenv(
        "AIRFLOW_CONN_SOURCE", json.dumps({"conn_type": "sqlite", "host": str(folder / "source.sqlite")})
    )
    return SqlRequests("source", "SELECT id, body FROM leads ORDER BY id", custom_id="id", prompt="body")


def one_of_each_batch_is_missing(run: Any, answers: Any, batches: int) -> None:
    assert run.state == "success"
    rows = answers.query("SELECT batch_id, custom_id, status, retryable FROM answers")
    assert len(rows) == len({custom_id for _, custom_id, _, _ in rows}) == 9
    missing = [(batch_id, custom_id) for batch_id, custom_id, status, again in rows if status == "missing" and again]
    assert len(missing) == len({batch_id for batch_id, _ in missing}) == batches


@pytest.mark.parametrize("source", ["xcom", "file", "query", "path from upstream"])
@pytest.mark.parametrize("shard_size", [None, 4])
def test_a_request_without_a_line_is_a_row_that_can_be_retried(
    source: str, shard_size: int | None, emulator: Any, run_dag: Any, answers: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        @task
        def path() -> str:
            return file_of(tmp_path)

        kinds = {"xcom": build, "file": lambda: file_of(tmp_path), "path from upstream": path}
        requests = query_of(tmp_path, monkeypatch) if source == "query" else kinds[source]()
        load(ClaudeBatchSensor(task_id="wait", batch=submit(requests=requests, shard_size=shard_size).output).output)

    run = run_dag(pipeline(wire))
    one_of_each_batch_is_missing(run, answers, 3 if shard_size else 1)
    receipt = xcom(run, "load")
    assert receipt["counts"]["missing"] == len(receipt["retry_ids"]) == (3 if shard_size else 1)


def test_the_missing_of_a_batch_that_is_loaded_by_itself_are_its_own(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        parts = shards(submit(requests=build(), shard_size=4).output)
        waits = ClaudeBatchSensor.partial(task_id="wait").expand(batch=parts)
        ClaudeBatchResultsOperator.partial(task_id="load", warehouse_conn_id="warehouse", table="answers").expand(
            batch=waits.output
        )

    one_of_each_batch_is_missing(run_dag(pipeline(wire)), answers, 3)


def test_the_missing_of_a_mapped_submission_are_its_own(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        parts = build_part.expand(part=[1, 2, 3])
        submits = ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS).expand(requests=parts)
        load(ClaudeBatchSensor(task_id="wait", batch=submits.output).output)

    one_of_each_batch_is_missing(run_dag(pipeline(wire)), answers, 3)


def test_what_is_missing_is_what_a_retry_sends(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=2, times=2)

    def wire() -> None:
        requests = build()
        first = load(ClaudeBatchSensor(task_id="wait", batch=submit(requests=requests).output).output)
        ClaudeBatchOperator(task_id="retry", defaults=DEFAULTS, requests=requests, retry_of=first.output)

    run = run_dag(pipeline(wire))
    assert states(run)["retry"] == "success"
    assert xcom(run, "retry")["requests"] == 2
    sent = {request["custom_id"][:-16] for request in emulator.submitted(xcom(run, "retry")["batches"][0]["id"])}
    assert sent == set(xcom(run, "load")["retry_ids"])


def test_requests_that_were_skipped_are_not_taken_for_missing(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    @task
    def build_some_bad() -> list[dict[str, Any]]:
        requests = some_requests(5)
        requests[1]["params"]["messages"] = []
        return [*requests, requests[2]]

    def wire() -> None:
        submitted = submit(requests=build_some_bad(), on_invalid="skip")
        load(ClaudeBatchSensor(task_id="wait", batch=submitted.output).output)

    run = run_dag(pipeline(wire))
    statuses = [status for (status,) in answers.query("SELECT status FROM answers")]
    assert run.state in {"success", "failed"}
    assert statuses.count("errored") == 2
    assert statuses.count("succeeded") == 3


def test_a_source_that_has_changed_is_not_believed(
    emulator: Any, run_dag: Any, answers: Any, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    path = file_of(tmp_path)

    def wire() -> None:
        @task(trigger_rule="all_done")
        def change() -> None:
            Path(path).write_text(json.dumps({"custom_id": "other", "params": {}}) + "\n")

        waited = ClaudeBatchSensor(task_id="wait", batch=submit(requests=path).output)
        loaded = load(waited.output)
        waited >> change() >> loaded

    run = run_dag(pipeline(wire))
    assert states(run)["load"] == "failed"
    assert "the source does not hold the requests of then any more" in caplog.text
    assert "1 requests are in no line of the results" in capfd.readouterr().out
    assert answers.query("SELECT count(*) FROM answers") == [(8,)]


def test_a_stream_that_ends_early_without_an_error_is_asked_for_again(
    emulator: Any, run_dag: Any, answers: Any, caplog: Any
) -> None:
    emulator.fault("missing_lines", count=4)
    run = run_dag(
        pipeline(lambda: load(ClaudeBatchSensor(task_id="wait", batch=submit(requests=build()).output).output))
    )
    assert run.state == "success"
    assert "Fewer lines came than there are requests" in caplog.text
    assert answers.query("SELECT count(*), count(DISTINCT custom_id), max(status) FROM answers") == [
        (9, 9, "succeeded")
    ]
