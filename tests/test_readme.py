"""The README says what is true: its Dag runs as printed, its tables name what there is."""

import json
import re
import runpy
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import loads
import pytest
from airflow.sdk import DAG
from runs import states
from warehouse import connect_warehouse

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchResultsOperator, ClaudeBatchSensor
from airflow_provider_claude_batch.row import COLUMNS, PROBLEMS, is_retryable

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def first_dag(folder: Path) -> Any:
    (code,) = blocks("python")
    path = folder / "label_tickets.py"
    path.write_text(code)
    return runpy.run_path(str(path))["label_tickets"]()


def test_the_first_dag_runs_as_printed(
    tmp_path: Path, emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = connect_warehouse("duckdb", tmp_path, monkeypatch)
    emulator.clock(speed=3600)
    run = run_dag(first_dag(tmp_path))
    assert run.state == "success"
    assert {name for name, state in states(run).items() if state != "success"} == {
        f"labels.{step}_{attempt}" for step in ("submit", "wait", "load") for attempt in (2, 3)
    }
    assert warehouse.query("SELECT custom_id, text FROM ticket_labels_latest ORDER BY custom_id") == [
        ("ticket-101", "billing"),
        ("ticket-102", "technical"),
        ("ticket-103", "billing"),
    ]


def from_a_query(path: Path) -> Any:
    with DAG("from_a_query", schedule=None) as found:
        runpy.run_path(str(path))
    return found


def test_the_query_of_the_guide_to_submitting_runs_as_printed(
    tmp_path: Path, emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("python", (ROOT / "docs" / "submitting.md").read_text())
    (tmp_path / "submit.py").write_text(code)
    now = datetime.now(UTC)
    with closing(sqlite3.connect(tmp_path / "tickets.sqlite", isolation_level=None)) as tickets:
        tickets.execute("CREATE TABLE tickets (id INTEGER, body TEXT, day TEXT)")
        tickets.executemany(
            "INSERT INTO tickets VALUES (?, 'Where is my invoice?', ?)", [(2, f"{now:%Y-%m-%d}"), (1, "2020-01-01")]
        )
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "tickets.sqlite")}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    run = run_dag(from_a_query(tmp_path / "submit.py"), logical_date=now)
    assert states(run) == {"submit": "success"}
    (call,) = emulator.journal(operation="create")
    assert [one["custom_id"][:-16] for one in emulator.submitted(call["batch_id"])] == ["2"]


def test_the_typed_columns_of_the_guide_to_loading_are_those_of_its_model(
    tmp_path: Path, emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("python", (ROOT / "docs" / "loading.md").read_text())
    (tmp_path / "typed.py").write_text(code)
    warehouse = connect_warehouse("duckdb", tmp_path, monkeypatch)
    emulator.clock(speed=3600)
    run = run_dag(runpy.run_path(str(tmp_path / "typed.py"))["typed_tickets"]())
    assert run.state == "success"
    ((label, urgency, output),) = warehouse.query("SELECT label, urgency, output FROM typed_tickets_latest")
    assert (label, urgency) == (json.loads(output)["label"], json.loads(output)["urgency"])


def test_the_table_of_outcomes_says_which_rows_are_tried_again() -> None:
    table = (ROOT / "docs" / "loading.md").read_text().split("| what happened |")[1].split("\n\n")[0]
    lines = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    told = {(status, problem): again.startswith("yes") for _, status, problem, again in lines if status != "errored"}
    blank = loads.row()
    for (status, problem), again in told.items():
        blank.status, blank.problem = status, problem or None
        assert is_retryable(blank) == again, (status, problem)
    assert {problem for _, problem in told} == {
        "",
        "empty",
        "unknown_stop_reason",
        "invalid_output",
        *PROBLEMS.values(),
    }


@pytest.mark.parametrize("kind", ["postgres", "duckdb"])
def test_the_queries_of_the_guide_to_loading_make_columns_of_the_input_of_a_tool(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = connect_warehouse(kind, tmp_path, monkeypatch)
    queries = dict(zip(["postgres", "duckdb"], blocks("sql", (ROOT / "docs" / "loading.md").read_text()), strict=True))
    call = {"type": "tool_use", "id": "t", "name": "label", "input": {"label": "billing", "urgency": 3}}
    said = {"type": "text", "text": "I label it."}
    answers = {"called": [call], "said and called": [said, call], "said": [said], "refused": [call]}
    loads.load_rows(
        *(
            loads.row(custom_id=name, content=json.dumps(content), problem="refused" if name == "refused" else None)
            for name, content in answers.items()
        ),
        table="tickets",
    )
    found = warehouse.query(queries[kind])
    assert sorted(found) == [("called", "billing", 3), ("said and called", "billing", 3)]


def test_the_table_of_columns_names_every_column() -> None:
    table = (ROOT / "docs" / "loading.md").read_text().split("| column |")[1].split("\n\n")[0]
    named = [
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(named) == sorted(column.name for column in COLUMNS)


def test_the_table_of_tasks_names_every_argument() -> None:
    for operator in (ClaudeBatchOperator, ClaudeBatchSensor, ClaudeBatchResultsOperator):
        (line,) = [line for line in README.splitlines() if line.startswith(f"| `{operator.__name__}` |")]
        arguments = set(re.findall(r":param (\w+):", operator.__doc__ or ""))
        assert set(re.findall(r"`(\w+)`", line.split("|")[3])) == arguments


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


def test_every_file_that_is_named_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
