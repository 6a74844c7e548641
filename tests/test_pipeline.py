"""The example Dag as a whole: submit, deferred wait, load, and again for what failed."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from runs import states, xcom
from warehouse import connect_warehouse

EXAMPLES = Path(__file__).parent.parent / "example_dags"


@pytest.fixture
def ticket_labels() -> Any:
    return runpy.run_path(str(EXAMPLES / "ticket_labels.py"))["ticket_labels"]()


def test_a_perfect_night_skips_the_second_round(
    ticket_labels: Any, emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    run = run_dag(ticket_labels)
    first = dict.fromkeys(("build_requests", "submit", "wait", "load"), "success")
    second = dict.fromkeys(("submit_again", "wait_again", "load_again"), "skipped")
    assert states(run) == first | second
    assert warehouse.query("SELECT status, count(*) FROM ticket_labels GROUP BY status") == [("succeeded", 200)]
    assert {row[0] for row in warehouse.query("SELECT text FROM ticket_labels")} <= {
        "billing",
        "technical",
        "account",
        "other",
    }
    output = capfd.readouterr().out
    assert "DEFERRED" in output
    assert "URGENT" not in output
    assert "emulator-key" not in output


def test_a_bad_night_sends_again_only_what_failed(
    ticket_labels: Any, emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = connect_warehouse("duckdb", tmp_path, monkeypatch)
    emulator.fault("row", outcome="overloaded_error", match="ticket-000[0-4]", times=5)
    emulator.fault("row", outcome="invalid_request_error", match="ticket-0005", times=-1)
    run = run_dag(ticket_labels)
    assert set(states(run).values()) == {"success"}
    receipt = xcom(run, "load_again")
    assert receipt["attempt"] == 2
    assert receipt["submit_task"] == "submit"
    assert receipt["submission"] == xcom(run, "load")["submission"]
    assert receipt["requests"] == 5
    latest = warehouse.query("SELECT attempt, status, count(*) FROM ticket_labels_latest GROUP BY ALL ORDER BY ALL")
    assert latest == [(1, "errored", 1), (1, "succeeded", 194), (2, "succeeded", 5)]
    assert warehouse.query("SELECT custom_id, error_type FROM ticket_labels_errors") == [
        ("ticket-0005", "invalid_request_error")
    ]
    assert [call["requests"] for call in emulator.journal(operation="create")] == [200, 5]
