"""reuse_from=: what has an answer is not asked for again, and what was answered meanwhile changes no submission."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import dag, task, task_group
from loads import LATER, load_rows, row
from pydantic import BaseModel
from runs import clear_and_run, states, xcom
from tries import DEFAULTS, Task, cancelled, paid, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.request import Defaults, Reading
from airflow_provider_claude_batch.row import Origin, of_line
from airflow_provider_claude_batch.wire_id import WireId

EMULATOR = ("--batch-seconds", "0")
PLACE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "products"}


class Label(BaseModel):
    label: str


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def answers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


def nightly(requests: Any, **arguments: Any) -> Any:
    @dag(schedule=None)
    def nightly() -> None:
        given = {"defaults": DEFAULTS, "reuse_from": ("warehouse", "products"), **PLACE, **arguments}
        claude_batch("enrich", requests=requests, **given)

    return nightly()


def sent(emulator: Any) -> list[list[str]]:
    ids = [call["batch_id"] for call in emulator.journal(operation="create", status=200)]
    return [[request["custom_id"][:-16] for request in emulator.submitted(one)] for one in ids]


def changed(requests: list[dict[str, Any]], *places: int) -> list[dict[str, Any]]:
    """Ask some of them in other words."""
    return [
        {**one, "params": {"messages": [{"role": "user", "content": f"Now {n}"}]}} if n in places else one
        for n, one in enumerate(requests)
    ]


def test_only_what_is_new_or_changed_is_sent_and_the_view_shows_old_and_new(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    run_dag(nightly(some_requests(5)))
    run = run_dag(nightly(changed(some_requests(6), 1)))
    assert sent(emulator) == [["r-0", "r-1", "r-2", "r-3", "r-4"], ["r-1", "r-5"]]
    receipt, total = xcom(run, "enrich.submit"), xcom(run, "enrich.total")
    assert (receipt["requests"], receipt["reused"]) == (2, 4)
    assert (total["requests"], total["reused"], total["counts"]) == (2, 4, {"succeeded": 2})
    current = answers.query("SELECT custom_id, run_id FROM products_current")
    assert sorted(custom_id for custom_id, _ in current) == [f"r-{n}" for n in range(6)]
    assert sorted(custom_id for custom_id, run_id in current if run_id == run.run_id) == ["r-1", "r-5"]


@pytest.mark.parametrize(
    ("content", "stop_reason", "is_reused"),
    [
        ([], "end_turn", False),
        ([{"type": "thinking", "thinking": "Hm.", "signature": "x"}], "end_turn", False),
        ([{"type": "text", "text": "Yes."}], "a_reason_still_to_come", False),
        ([{"type": "tool_use", "id": "t", "name": "label", "input": {}}], "tool_use", True),
        ([], "stop_sequence", True),
    ],
)
def test_an_answer_that_is_not_usable_is_asked_for_again(
    content: list[Any], stop_reason: str, is_reused: bool, answers: Any
) -> None:
    message = {"id": "m", "model": "claude-haiku-4-5", "content": content, "stop_reason": stop_reason, "usage": {}}
    line = {"custom_id": str(WireId("a", "abcdefg", "hashed")), "result": {"type": "succeeded", "message": message}}
    origin = Origin(row(), "abcdefg", datetime(2026, 11, 21, tzinfo=UTC))
    writer = load_rows(of_line(json.dumps(line).encode(), origin, PRICES))
    assert list(writer.answered(LATER)) == ([("a", "hashed")] if is_reused else [])


def test_what_is_reused_counts_among_what_has_an_answer(emulator: Any, run_dag: Any, answers: Any) -> None:
    run_dag(nightly(some_requests(5)))
    emulator.fault("row", outcome="invalid_request_error", match="Now", times=-1)
    asked = changed(some_requests(5), 1)
    assert run_dag(nightly(asked, max_error_rate=0.2)).state == "success"
    assert run_dag(nightly(asked, max_error_rate=0.1)).state == "failed"


def test_a_night_without_changes_passes_through_every_step(
    emulator: Any, run_dag: Any, answers: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "airflow_provider_claude_batch")
    run_dag(nightly(some_requests(3)))
    run = run_dag(nightly(some_requests(3)))
    assert run.state == "success"
    passed = {"submit", "wait", "load", "total"}
    assert {name.partition(".")[2] for name, state in states(run).items() if state == "success"} == passed
    assert len(sent(emulator)) == 1
    receipt = xcom(run, "enrich.submit")
    assert (receipt["requests"], receipt["reused"], receipt["batches"]) == (0, 3, [])
    assert xcom(run, "enrich.total")["reused"] == 3
    assert "Not sent, for an answer is there already: 3 requests." in caplog.text
    assert answers.query("SELECT count(*) FROM products") == [(3,)]


def test_what_failed_has_no_answer(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    run_dag(nightly(some_requests(3), rounds=0))
    run_dag(nightly(some_requests(3), rounds=0))
    assert sent(emulator) == [["r-0", "r-1", "r-2"], ["r-1"]]


def test_what_only_more_tokens_answered_is_an_answer(emulator: Any, run_dag: Any, answers: Any) -> None:
    short = {"defaults": {**DEFAULTS, "max_tokens": 3}, "retry_defaults": {"max_tokens": 512}}
    run_dag(nightly(some_requests(3), **short))
    before = len(sent(emulator))
    run = run_dag(nightly(some_requests(3), **short))
    assert len(sent(emulator)) == before
    assert xcom(run, "enrich.submit")["reused"] == 3


def test_a_question_that_comes_back_is_asked_again_when_the_table_shows_another_answer(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    for requests in (some_requests(1), changed(some_requests(1), 0), some_requests(1), some_requests(1)):
        run_dag(nightly(requests))
    assert sent(emulator) == [["r-0"], ["r-0"], ["r-0"]]


def test_another_id_another_model_or_another_schema_is_another_question(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    run_dag(nightly(some_requests(1)))
    run_dag(nightly([{**some_requests(1)[0], "custom_id": "other"}]))
    run_dag(nightly(some_requests(1), defaults={**DEFAULTS, "model": "claude-sonnet-4-6"}))
    run_dag(nightly(some_requests(1), columns=Label))
    assert sent(emulator) == [["r-0"], ["other"], ["r-0"], ["r-0"]]


def misspelled(name: str, **arguments: Any) -> Any:
    """Make a Dag of its own, without a history, that reuses answers from a table which nobody makes."""

    @dag(schedule=None, dag_id=name)
    def misspelled() -> None:
        given = {"defaults": DEFAULTS, "reuse_from": ("warehouse", "prodcuts"), "rounds": 0, **PLACE, **arguments}
        claude_batch("enrich", requests=some_requests(2), **given)

    return misspelled()


@pytest.fixture
def name() -> str:
    return f"misspelled_{uuid4().hex}"


def test_a_table_that_is_not_there_yet_is_named_once_and_has_nothing_to_reuse(
    emulator: Any, run_dag: Any, answers: Any, name: str, caplog: Any
) -> None:
    run = run_dag(misspelled(name))
    assert run.state == "success"
    assert xcom(run, "enrich.submit").get("reused") is None
    said = "There is no table prodcuts in connection 'warehouse' to reuse answers from yet: all requests are sent."
    assert [record.message for record in caplog.records].count(said) == 1


def test_a_table_that_is_missing_after_the_first_night_is_a_mistake_and_nothing_is_paid(
    emulator: Any, run_dag: Any, answers: Any, name: str, capfd: Any
) -> None:
    run_dag(misspelled(name))
    again = run_dag(misspelled(name))
    assert states(again)["enrich.submit"] == "failed"
    said = capfd.readouterr().out
    assert (
        "There is no table prodcuts in connection 'warehouse' to reuse answers from, although answers of this" in said
    )
    assert "loaded before, into products. Nothing was sent. Correct the name in reuse_from=, or" in said
    assert len(sent(emulator)) == 1
    assert run_dag(misspelled(name, reuse_missing="ok")).state == "success"
    assert len(sent(emulator)) == 2


def test_nights_side_by_side_are_all_the_first_until_one_of_them_is_loaded(
    emulator: Any, run_dag: Any, answers: Any, name: str
) -> None:
    answers.execute(f"CREATE TABLE elsewhere (batch_id {answers.wrong})")  # so that the load fails
    for _ in range(2):
        found = states(run_dag(misspelled(name, table="elsewhere")))
        assert (found["enrich.submit"], found["enrich.load"]) == ("success", "failed")


def test_a_table_that_the_load_makes_may_be_gone_at_any_time(
    emulator: Any, run_dag: Any, answers: Any, name: str, caplog: Any
) -> None:
    own = {"reuse_from": ("warehouse", "{{ dag.dag_id }}"), "table": "{{ dag.dag_id }}"}
    run_dag(misspelled(name, **own))
    answers.execute(*(f"DROP VIEW {name}_{view}" for view in ("errors", "current", "latest")), f"DROP TABLE {name}")
    caplog.clear()
    assert run_dag(misspelled(name, **own)).state == "success"
    assert f"There is no table {name} in connection 'warehouse'" in caplog.text
    assert len(sent(emulator)) == 2


def test_what_was_paid_is_taken_up_though_the_table_is_missing(
    emulator: Any, run_dag: Any, answers: Any, name: str
) -> None:
    run = run_dag(misspelled(name))
    assert clear_and_run(misspelled(name), run, "enrich.submit").state == "success"
    assert len(sent(emulator)) == 1


def test_elements_of_a_mapped_group_that_share_ids_are_paid_once(emulator: Any, run_dag: Any, answers: Any) -> None:
    def by_region(*regions: str) -> Any:
        @dag(schedule=None)
        def by_region() -> None:
            @task
            def build() -> list[dict[str, Any]]:
                return [{"name": name, "requests": some_requests(2, f"{name} asks")} for name in regions]

            @task_group
            def region(name: Any, requests: Any) -> None:
                reuse = {"reuse_from": ("warehouse", "products"), "element": name}
                claude_batch("g", requests=requests, defaults=DEFAULTS, rounds=0, **reuse, **PLACE)

            region.expand_kwargs(build())

        return by_region()

    run_dag(by_region("emea", "apac"))
    run_dag(by_region("apac", "latam", "emea"))
    assert sorted(sent(emulator)) == [["r-0", "r-1"]] * 3
    current = answers.query("SELECT element, custom_id FROM products_current")
    assert sorted(current) == [(name, f"r-{n}") for name in ("apac", "emea", "latam") for n in (0, 1)]


def test_an_id_that_stands_twice_is_refused_though_it_has_an_answer(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    run_dag(nightly(some_requests(2)))
    run = run_dag(nightly([*some_requests(2), some_requests(1)[0]]))
    assert states(run)["enrich.submit"] == "failed"
    assert "custom_id stands twice" in capfd.readouterr().out


# What changes while a submission is on its way


class Answers(dict[tuple[str, str], datetime]):
    """A table of answers: what had one at a moment."""

    def add(self, requests: Iterable[Any]) -> None:
        for request in Reading(requests, Defaults.of(DEFAULTS)):
            self.setdefault((request.custom_id, request.request_hash), datetime.now(UTC))

    def __call__(self, moment: datetime) -> set[tuple[str, str]]:
        return {pair for pair, since in self.items() if since < moment}


@pytest.fixture
def task_instance(client: Any, emulator: Any) -> Task:
    return Task(client, emulator)


def test_what_is_answered_between_two_tries_does_not_change_what_is_sent(task_instance: Task, emulator: Any) -> None:
    table = Answers()
    emulator.fault("queue_full", times=1)
    pause = task_instance.run(some_requests(4), answered=table, shard_size=2)
    assert pause.seconds > 0
    table.add(some_requests(4))
    receipt, _ = task_instance.finish(some_requests(4), answered=table, shard_size=2)
    assert receipt is not None
    assert (receipt.requests, receipt.reused) == (4, None)
    assert paid(emulator) == [2, 2]


def test_a_cleared_task_with_the_same_requests_takes_its_batch_though_all_is_answered_now(
    task_instance: Task, emulator: Any
) -> None:
    table = Answers()
    first, _ = task_instance.finish(some_requests(3), answered=table)
    table.add(some_requests(3))
    task_instance.clears += 1
    again, _ = task_instance.finish(some_requests(3), answered=table)
    assert again is not None
    assert again.batches == first.batches
    assert paid(emulator) == [3]
    assert cancelled(emulator) == []


def test_a_cleared_task_with_one_request_changed_pays_for_that_one(task_instance: Task, emulator: Any) -> None:
    table = Answers()
    task_instance.finish(some_requests(3), answered=table)
    emulator.advance(3600)
    table.add(some_requests(3))
    task_instance.clears += 1
    again, _ = task_instance.finish(changed(some_requests(3), 1), answered=table)
    assert again is not None
    assert (again.requests, again.reused) == (1, 2)
    assert paid(emulator) == [3, 1]


def test_answers_of_the_future_are_none(task_instance: Task, emulator: Any) -> None:
    table = Answers()
    table.add(some_requests(2))
    for pair in table:
        table[pair] += timedelta(hours=1)
    receipt, _ = task_instance.finish(some_requests(2), answered=table)
    assert receipt is not None
    assert (receipt.requests, receipt.reused) == (2, None)
