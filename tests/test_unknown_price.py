"""A model whose price the package does not know: it is told as such, or priced as Airflow's configuration says."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task
from runs import xcom
from test_readme import first_dag
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import ClaudeBatchOperator, claude_batch
from airflow_provider_claude_batch.connection import prices
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import read

EMULATOR = ("--batch-seconds", "0")
UNKNOWN = "claude-mythos-preview"
GIVEN = json.dumps({UNKNOWN: {"input": 3, "output": 15}})


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("sqlite", tmp_path, monkeypatch)


def give(monkeypatch: pytest.MonkeyPatch, prices: object) -> None:
    monkeypatch.setenv("AIRFLOW__CLAUDE_BATCH__PRICES", str(prices))


def group(*models: str) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        @task
        def build() -> list[dict[str, Any]]:
            return [
                {"custom_id": f"{model}-{n}", "params": {**request["params"], "model": model}}
                for model in models
                for n, request in enumerate(some_requests(3))
            ]

        claude_batch(
            "labels",
            requests=build(),
            defaults={"max_tokens": 4_000},
            warehouse_conn_id="warehouse",
            table="answers",
            poke_interval=5,
        )

    return pipeline()


def submission(**limits: Any) -> Any:
    @dag(schedule=None)
    def submission() -> None:
        defaults = {**DEFAULTS, "model": UNKNOWN}
        ClaudeBatchOperator(task_id="submit", requests=some_requests(), defaults=defaults, **limits)

    return submission()


def costs_in(answers: Any) -> tuple[float, float]:
    ((cost, live),) = answers.query("SELECT sum(CAST(cost_usd AS REAL)), sum(CAST(live_cost_usd AS REAL)) FROM answers")
    return cost, live


def test_without_any_price_no_cost_is_told(run_dag: Any, capfd: Any, caplog: Any) -> None:
    run = run_dag(group(UNKNOWN))
    assert run.state == "success"
    for task_id in ("labels.load", "labels.total"):
        receipt = xcom(run, task_id)
        assert receipt["unpriced"] == receipt["rows"] == 3
        assert not {"cost_usd", "live_cost_usd", "saved_usd"} & receipt.keys()
        assert list(receipt)[-1] == "batches"
    said = capfd.readouterr().out + caplog.text
    assert f"3 rows have no cost, for no price is known of {UNKNOWN}: [claude_batch] prices" in said
    assert "Cost of all rounds: not known." in said
    assert "$0.00" not in said


def test_with_some_prices_the_cost_is_told_as_the_least(answers: Any, run_dag: Any, capfd: Any, caplog: Any) -> None:
    receipt = xcom(run_dag(group(UNKNOWN, "claude-haiku-4-5")), "labels.total")
    assert (receipt["unpriced"], receipt["rows"]) == (3, 6)
    assert (receipt["cost_usd"], receipt["live_cost_usd"]) == pytest.approx(costs_in(answers), abs=2e-6)
    assert "Cost of all rounds: at least $0.0" in capfd.readouterr().out + caplog.text


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_price_in_the_configuration_is_the_price(
    in_a_file: bool, answers: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prices.json"
    path.write_text(GIVEN)
    give(monkeypatch, path if in_a_file else GIVEN)
    run = run_dag(group(UNKNOWN, "claude-haiku-4-5"))
    receipt = xcom(run, "labels.total")
    used = receipt["by_model"][UNKNOWN]
    expected = (3 * used["input_tokens"] + 15 * used["output_tokens"]) / 1e6
    assert (used["live_cost_usd"], used["cost_usd"]) == pytest.approx((expected, expected / 2), abs=2e-6)
    assert (receipt["unpriced"], receipt["cost_usd"]) == (0, pytest.approx(costs_in(answers)[0], abs=2e-6))
    assert xcom(run, "labels.submit")["estimate_usd"] > 0


def test_the_estimate_knows_the_prices_of_the_configuration(
    run_dag: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_dag(submission(max_cost_usd=1)).state == "failed"
    assert "max_cost_usd allows $1.00, and this submission has a model whose price is not known" in (
        capfd.readouterr().out
    )
    give(monkeypatch, GIVEN)
    assert run_dag(submission(max_cost_usd=1)).state == "success"
    give(monkeypatch, json.dumps({UNKNOWN: {"input": 999, "output": 999}}))
    assert run_dag(submission(max_cost_usd=0.5)).state == "failed"
    assert "max_cost_usd allows $0.50, and this submission has an estimate of about $0." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "Input data was truncated"),
        ('{"claude-next-1": {"input": 3}}', "missing required field `output`"),
        ("/no/such/prices.json", "No such file or directory"),
    ],
)
def test_prices_that_cannot_be_read_are_told_before_anything_is_sent(
    given: str, said: str, emulator: Any, run_dag: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, given)
    assert run_dag(submission()).state == "failed"
    printed = capfd.readouterr().out
    assert "The prices in Airflow's configuration ([claude_batch] prices) cannot be read: " in printed
    assert said in printed
    assert emulator.journal(operation="create") == []


def test_a_file_of_prices_that_is_no_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(b'{"\xff": 1}')
    give(monkeypatch, path)
    with pytest.raises(Misconfigured, match="cannot be read"):
        prices()


def test_without_a_setting_the_prices_are_ours() -> None:
    assert prices() is PRICES


def test_the_readme_can_publish_what_has_no_price(
    tmp_path: Path, run_dag: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_warehouse("duckdb", tmp_path, monkeypatch)
    publish = first_dag(tmp_path).get_task("publish").python_callable
    for total in ({"counts": {}, "cost_usd": 0.5, "saved_usd": 0.25}, {"counts": {}}):
        publish(total)
    assert capfd.readouterr().out == "{} for 0.5 dollars, 0.25 saved\n{} for None dollars, None saved\n"


def test_a_receipt_of_before_says_nothing_of_prices() -> None:
    (receipt,) = read({"v": 1, "submission": "s", "rows": 3, "cost_usd": 1.0, "batches": []})
    assert (receipt.cost_usd, receipt.unpriced) == (1.0, None)
