"""Structured output from end to end: a model at submit, columns at load."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from airflow.sdk import dag, task
from pydantic import BaseModel, field_validator
from runs import states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    shards,
)
from airflow_provider_claude_batch.errors import Misconfigured

EMULATOR = ("--batch-seconds", "0")


class Part(BaseModel):
    sku: str
    pieces: int


class Ticket(BaseModel):
    label: Literal["billing", "technical", "other"]
    urgency: int
    confidence: float
    due: date
    angry: bool
    parts: list[Part]
    remark: str | None = None


class Invoice(BaseModel):
    total: Decimal
    deposit: Decimal | None = None


class LongerTicket(Ticket):
    owner: str


class Stubborn(BaseModel):
    label: str

    @field_validator("label")
    @classmethod
    def is_short(cls, label: str) -> str:
        raise ValueError(f"I never like {label}")


@pytest.fixture(params=["duckdb", "sqlite"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


def pipeline(submit_columns: Any = Ticket, load_columns: Any = Ticket, **arguments: Any) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        submit = ClaudeBatchOperator(
            task_id="submit",
            **{"requests": some_requests(20), "defaults": DEFAULTS, **arguments},
            columns=submit_columns,
        )
        wait = ClaudeBatchSensor(task_id="wait", batch=submit.output)
        ClaudeBatchResultsOperator(
            task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="tickets", columns=load_columns
        )

    return pipeline()


def test_each_field_of_the_model_is_a_typed_column(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    run = run_dag(pipeline())
    assert run.state == "success"
    assert xcom(run, "load")["problems"] == {}
    rows = warehouse.query("SELECT output, label, urgency, confidence, due, angry, parts, remark FROM tickets_latest")
    assert len(rows) == 20
    for output, label, urgency, confidence, due, angry, parts, remark in rows:
        answer = Ticket.model_validate_json(output)
        assert (answer.label, answer.urgency, answer.confidence, answer.remark) == (label, urgency, confidence, remark)
        assert (str(answer.due), answer.angry) == (str(due), bool(angry))
        assert [Part(**part) for part in json.loads(parts)] == answer.parts


def test_money_in_an_answer_is_exact(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    run = run_dag(pipeline(Invoice, Invoice))
    assert xcom(run, "load")["problems"] == {}
    for output, total in warehouse.query("SELECT output, total FROM tickets"):
        assert Decimal(json.loads(output)["total"]) == Decimal(total)


def test_the_format_is_asked_for_beside_what_else_is_asked_of_the_output(
    emulator: Any, run_dag: Any, warehouse: Any
) -> None:
    requests = some_requests(2)
    requests[1]["params"]["output_config"] = {"effort": "low"}
    run = run_dag(pipeline(requests=requests, defaults={**DEFAULTS, "output_config": {"effort": "high"}}))
    sent = [r["params"]["output_config"] for r in emulator.submitted(xcom(run, "submit")["batches"][0]["id"])]
    assert [config["effort"] for config in sent] == ["high", "low"]
    assert {config["format"]["type"] for config in sent} == {"json_schema"}


def test_a_request_with_a_format_of_its_own_is_refused(emulator: Any, run_dag: Any, capfd: Any) -> None:
    requests = some_requests(2)
    requests[1]["params"]["output_config"] = {"format": {"type": "json_schema", "schema": {}}}
    assert states(run_dag(pipeline(requests=requests)))["submit"] == "failed"
    assert "output_config asks for a format of its own" in capfd.readouterr().out
    assert emulator.journal(operation="create") == []


def test_what_does_not_fit_is_kept_as_text_and_tried_again(
    emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    asked = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    run = run_dag(pipeline(asked, Stubborn))
    receipt = xcom(run, "load")
    assert run.state == "success"
    assert receipt["problems"] == {"invalid_output": 20}
    assert receipt["retryable"] == 20
    assert receipt["errors"] == [["invalid_output: label: value_error", 20]]
    rows = warehouse.query("SELECT problem, error_message, output, label, text FROM tickets_errors")
    assert {row[:4] for row in rows} == {("invalid_output", "label: value_error", None, None)}
    assert all("label" in json.loads(text) for *_, text in rows)
    assert "never like" not in capfd.readouterr().out


def test_a_model_that_gains_fields_gains_columns(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    run_dag(pipeline(requests=some_requests(2)))
    run_dag(pipeline(LongerTicket, LongerTicket, requests=some_requests(3)))
    assert warehouse.query("SELECT count(*), count(owner) FROM tickets") == [(5, 3)]
    assert warehouse.query("SELECT count(*), count(owner) FROM tickets_latest") == [(5, 3)]
    run_dag(pipeline(requests=some_requests(4)))
    assert warehouse.query("SELECT count(*), count(owner) FROM tickets") == [(9, 3)]


def test_a_field_that_changes_its_type_is_refused(emulator: Any, run_dag: Any, warehouse: Any, capfd: Any) -> None:
    class Changed(Ticket):
        urgency: str  # type: ignore[assignment]

    run_dag(pipeline(requests=some_requests(2)))
    run = run_dag(pipeline(Changed, Changed, requests=some_requests(2)))
    assert states(run)["load"] == "failed"
    assert "Column urgency of" in capfd.readouterr().out
    assert warehouse.query("SELECT count(*) FROM tickets") == [(2,)]


def test_truncated_and_failed_requests_have_empty_columns(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=-1)
    run = run_dag(pipeline(requests=some_requests(3), defaults={**DEFAULTS, "max_tokens": 2}))
    assert run.state == "success"
    assert xcom(run, "load")["problems"] == {"truncated": 2}
    assert warehouse.query("SELECT count(*), count(label), count(output) FROM tickets") == [(3, 0, 0)]


def test_columns_work_where_loads_are_mapped(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    @dag(schedule=None)
    def mapped() -> None:
        @task
        def build() -> list[dict[str, Any]]:
            return some_requests(6)

        submit = ClaudeBatchOperator(
            task_id="submit", requests=build(), defaults=DEFAULTS, columns=Ticket, shard_size=2
        )
        waits = ClaudeBatchSensor.partial(task_id="wait").expand(batch=shards(submit.output))
        ClaudeBatchResultsOperator.partial(
            task_id="load", warehouse_conn_id="warehouse", table="tickets", columns=Ticket
        ).expand(batch=waits.output)

    assert run_dag(mapped()).state == "success"
    assert warehouse.query("SELECT count(*), count(DISTINCT batch_id), count(label) FROM tickets") == [(6, 3, 6)]


@pytest.mark.parametrize("operator", [ClaudeBatchOperator, ClaudeBatchResultsOperator])
def test_a_field_that_every_table_has_is_refused_when_the_dag_is_parsed(operator: Any) -> None:
    class Clash(BaseModel):
        status: str

    arguments = {"requests": []} if operator is ClaudeBatchOperator else {"batch": "msgbatch_1"}
    place = {} if operator is ClaudeBatchOperator else {"warehouse_conn_id": "warehouse", "table": "t"}
    with pytest.raises(Misconfigured, match="names status, which every table has already"):
        operator(task_id="t", columns=Clash, **arguments, **place)
