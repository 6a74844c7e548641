"""Connections and tables that a receipt names: used where the Dag's own code names them, too."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task, task_group
from emulator import CONNECTION
from runs import states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    claude_batch,
)

EMULATOR = ("--batch-seconds", "0")
TABLE = {"warehouse_conn_id": "warehouse", "table": "answers"}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("sqlite", tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def other(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more connections of the API, one of which no Dag here names."""
    for conn_id in ("OTHER", "SECRET"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({**CONNECTION, "host": emulator.base_url}))


def pipeline(wire: Any) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        wire()

    return pipeline()


def edited(receipt: Any, **said: Any) -> Any:
    """Return a receipt as somebody with a right to XComs may leave it."""

    @task
    def edit(receipt: Any) -> Any:
        return {**receipt, **said}

    return edit(receipt)


def submit(**arguments: Any) -> Any:
    arguments = {"task_id": "submit", "requests": some_requests(), "defaults": DEFAULTS, **arguments}
    return ClaudeBatchOperator(**arguments).output


def wait(batch: Any, **arguments: Any) -> Any:
    return ClaudeBatchSensor(task_id="wait", batch=batch, **arguments).output


def load(batch: Any, **arguments: Any) -> Any:
    return ClaudeBatchResultsOperator(task_id="load", batch=batch, **{**TABLE, **arguments}).output


@task
def names() -> list[dict[str, Any]]:
    return [{"conn_id": "other"}, {"conn_id": "anthropic_default"}]


def mapped(**arguments: Any) -> Any:
    return ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS, **arguments)


def first_of(receipts: Any) -> Any:
    """Return the first receipt of several."""

    @task
    def first(receipts: Any) -> Any:
        return receipts[0]

    return first(receipts)


@task_group
def in_a_group(conn_id: str) -> Any:
    load(wait(submit(conn_id=conn_id)))


WIRED = {
    "a text": lambda: load(wait(submit(conn_id="other"))),
    "a template": lambda: load(wait(submit(conn_id="{{ dag_run.conf['conn_id'] }}"))),
    "a template of the task": lambda: load(wait(submit(conn_id="{{ {'submit': 'other'}[task.task_id] }}"))),
    "the wait": lambda: load(wait(edited(submit(conn_id="secret")), conn_id="other")),
    "partial": lambda: load(wait(first_of(mapped(conn_id="other").expand(requests=[some_requests()]).output))),
    "expand": lambda: load(wait(first_of(mapped(requests=some_requests()).expand(conn_id=["other"]).output))),
    "expand_kwargs": lambda: load(
        wait(first_of(mapped(requests=some_requests()).expand_kwargs(names()).output)),
    ),
    "a mapped group": lambda: in_a_group.expand(conn_id=["other"]),
    "claude_batch": lambda: claude_batch(
        requests=some_requests(), conn_id="other", defaults=DEFAULTS, rounds=1, fan_out=True, **TABLE
    ),
}


@pytest.mark.parametrize("wired", WIRED)
def test_the_connection_that_submitted_is_used_wherever_the_dag_names_it(
    wired: str, run_dag: Any, answers: Any
) -> None:
    run = run_dag(pipeline(WIRED[wired]), run_conf={"conn_id": "other"})
    assert run.state == "success"
    ours = [name for name in states(run) if name.rpartition(".")[2] == "load"]
    mapped_to = -1 if wired not in ("a mapped group", "claude_batch") else 0
    assert {xcom(run, name, map_index=mapped_to)["conn_id"] for name in ours} == {"other"}


@pytest.mark.parametrize("declared", ["other", "anthropic_default"])
def test_a_connection_that_only_the_receipt_names_is_not_used(
    declared: str, run_dag: Any, answers: Any, capfd: Any
) -> None:
    named = "anthropic_default" if declared == "other" else "secret"
    run = run_dag(pipeline(lambda: wait(edited(submit(conn_id=declared), conn_id=named))))
    assert states(run)["wait"] == "failed"
    said = capfd.readouterr().out
    assert f"The receipt names the connection '{named}', which no task upstream in this Dag declares" in said
    run = run_dag(pipeline(lambda: load(edited(wait(submit(conn_id=declared)), conn_id=named))))
    assert states(run)["load"] == "failed"
    assert f"The receipt names the connection '{named}'" in capfd.readouterr().out
    assert answers.query("SELECT name FROM sqlite_master") == []


def test_a_receipt_of_another_dag_needs_the_connection_named_unless_it_is_the_default(
    run_dag: Any, answers: Any, capfd: Any
) -> None:
    submitted = {name: xcom(run_dag(pipeline(lambda: submit(conn_id=name))), "submit") for name in (  # noqa: B023
        "other", "anthropic_default"
    )}  # fmt: skip
    assert run_dag(pipeline(lambda: load(submitted["anthropic_default"]))).state == "success"
    assert run_dag(pipeline(lambda: load(submitted["other"]))).state == "failed"
    assert "Name the connection in conn_id=" in capfd.readouterr().out
    assert run_dag(pipeline(lambda: load(submitted["other"], conn_id="other"))).state == "success"


# The table that a retry reads ids back from


def too_many_to_name(loaded: Any, **said: Any) -> Any:
    """Return a receipt without the ids that can be tried again, as one of over 500 is."""
    return edited(loaded, retry_ids=None, **said)


def retry(loaded: Any) -> None:
    submit(task_id="retry", retry_of=loaded)


LOADED = {
    "a text": lambda: load(wait(submit())),
    "a template": lambda: load(
        wait(submit()), table="{{ dag_run.conf['table'] }}", warehouse_conn_id="{{ dag_run.conf['warehouse'] }}"
    ),
}
CONF = {"table": "answers", "warehouse": "warehouse"}


@pytest.mark.parametrize("loaded", LOADED)
def test_ids_are_read_back_from_the_table_that_the_load_declares(
    loaded: str, emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1")
    run = run_dag(pipeline(lambda: retry(too_many_to_name(LOADED[loaded]()))), run_conf=CONF)
    assert run.state == "success"
    assert xcom(run, "retry")["requests"] == 1


def test_ids_of_mapped_loads_are_read_back_from_their_tables(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1")

    def wire() -> None:
        loads = ClaudeBatchResultsOperator.partial(task_id="load", **TABLE).expand(batch=[wait(submit())])
        retry(too_many_to_name(first_of(loads.output)))

    assert xcom(run_dag(pipeline(wire)), "retry")["requests"] == 1


@pytest.mark.parametrize("said", [{"table": "theirs"}, {"warehouse_conn_id": "payroll"}])
def test_ids_are_not_read_back_from_a_table_that_only_the_receipt_names(
    said: dict[str, Any], emulator: Any, run_dag: Any, answers: Any, capfd: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PAYROLL", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "payroll")}))
    emulator.fault("row", outcome="overloaded_error", match="hello 1")
    run = run_dag(pipeline(lambda: retry(too_many_to_name(load(wait(submit())), **said))))
    assert states(run)["retry"] == "failed"
    assert "which no load upstream in this Dag declares, so nothing is read from it" in capfd.readouterr().out
    assert not (tmp_path / "payroll").exists()
    assert len(emulator.journal(operation="create")) == 1
