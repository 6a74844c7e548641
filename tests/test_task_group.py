"""claude_batch(): a whole pipeline with its retries, as tasks of real Dag runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, dag, task, task_group
from pydantic import BaseModel
from runs import states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch
from airflow_provider_claude_batch.errors import Misconfigured

EMULATOR = ("--batch-seconds", "0")
PLACE = {"warehouse_conn_id": "warehouse", "table": "answers"}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


@task
def build(count: int = 6) -> list[dict[str, Any]]:
    return some_requests(count)


@task
def publish(total: dict[str, Any]) -> int:
    return total["counts"]["succeeded"]


def pipeline(count: int = 6, **arguments: Any) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        batch = claude_batch("labels", requests=build(count), **{"defaults": DEFAULTS, **PLACE, **arguments})
        publish(batch.output)

    return pipeline()


def latest(answers: Any) -> dict[tuple[str, str | None], int]:
    rows = answers.query("SELECT status, problem, count(*) FROM answers_latest GROUP BY ALL")
    return {(status, problem): count for status, problem, count in rows}


def test_a_perfect_night_skips_the_rounds_and_goes_on(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(pipeline())
    assert run.state == "success"
    assert states(run) == {
        "build": "success",
        **{f"labels.{name}": "success" for name in ("submit", "wait", "load", "total")},
        **{f"labels.{name}_{attempt}": "skipped" for name in ("submit", "wait", "load") for attempt in (2, 3)},
        "publish": "success",
    }
    total, load = xcom(run, "labels.total"), xcom(run, "labels.load")
    assert total == xcom(run, "labels.total", key="claude_batch")
    assert total["rounds"] == 1
    assert xcom(run, "publish") == 6
    for field in ("batches", "requests", "rows", "counts", "problems", "usage", "cost_usd", "saved_usd", "submission"):
        assert total[field] == load[field]


def test_what_fails_comes_back_until_it_succeeds(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    emulator.fault("row", outcome="expired", match="hello 2", times=2)
    emulator.fault("row", outcome="invalid_request_error", match="hello 3", times=-1)
    run = run_dag(pipeline(rounds=3))
    assert run.state == "success"
    assert states(run)["labels.submit_3"] == "success"
    assert states(run)["labels.submit_4"] == "skipped"
    total = xcom(run, "labels.total")
    assert total["rounds"] == 3
    assert total["counts"] == {"succeeded": 5, "errored": 1}
    assert (total["requests"], total["rows"], total["retryable"]) == (6, 9, 0)
    assert [part["requests"] for part in total["batches"]] == [6, 2, 1]
    assert latest(answers) == {("succeeded", None): 5, ("errored", None): 1}
    cost, tokens = answers.query("SELECT sum(cost_usd), sum(output_tokens) FROM answers")[0]
    assert total["cost_usd"] == pytest.approx(float(cost), abs=2e-6)
    assert total["usage"]["output_tokens"] == tokens


def test_what_is_left_after_all_rounds_is_counted_as_it_ended(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello [12]", times=-1)
    run = run_dag(pipeline(rounds=1))
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 4, "errored": 2}
    assert xcom(run, "labels.total")["retryable"] == 2
    assert latest(answers) == {("succeeded", None): 4, ("errored", None): 2}


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_rounds_say_how_often(rounds: int, emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=-1)
    run = run_dag(pipeline(rounds=rounds))
    assert [name for name in states(run) if "submit" in name] == [
        "labels.submit",
        *(f"labels.submit_{attempt}" for attempt in range(2, 2 + rounds)),
    ]
    assert len(emulator.journal(operation="create")) == 1 + rounds


def test_truncated_answers_come_back_with_more_tokens(emulator: Any, run_dag: Any, answers: Any) -> None:
    short = {**DEFAULTS, "max_tokens": 3}
    run = run_dag(pipeline(defaults=short, retry_defaults={"max_tokens": 512}, rounds=2))
    truncated = xcom(run, "labels.load")["problems"]["truncated"]
    assert truncated > 0
    assert xcom(run, "labels.submit_2")["requests"] == truncated
    total = xcom(run, "labels.total")
    assert (total["counts"], total["problems"], total["retryable"]) == ({"succeeded": 6}, {}, 0)
    assert latest(answers) == {("succeeded", None): 6}


def test_truncated_answers_that_may_not_be_longer_are_left(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    run = run_dag(pipeline(defaults={**DEFAULTS, "max_tokens": 3}))
    total = xcom(run, "labels.total")
    assert total["counts"] == {"succeeded": 6}
    found = latest(answers)
    assert total["problems"] == {"truncated": found["succeeded", "truncated"]}
    assert total["retryable"] == found["succeeded", "truncated"]


def test_of_two_requests_of_one_id_that_which_was_sent_is_sent_again(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)

    @dag(schedule=None)
    def twins() -> None:
        unfit = {"custom_id": "r-1", "params": {"messages": []}}
        given: dict[str, Any] = {"defaults": DEFAULTS, "on_invalid": "skip", **PLACE}
        claude_batch("labels", requests=[unfit, *some_requests(3)], **given)

    run = run_dag(twins())
    assert run.state == "success"
    total = xcom(run, "labels.total")
    assert [part["requests"] for part in total["batches"]] == [3, 1]
    assert (total["counts"], total["retryable"]) == ({"succeeded": 3, "errored": 1}, 0)
    assert latest(answers) == {("succeeded", None): 3}


def test_nothing_to_send_skips_all_of_it(emulator: Any, run_dag: Any, answers: Any, capfd: Any) -> None:
    run = run_dag(pipeline(count=0))
    assert run.state == "success"
    assert {state for name, state in states(run).items() if name != "build"} == {"skipped"}
    assert "nothing was submitted" in capfd.readouterr().out


def test_only_the_total_is_judged_by_the_error_rate(emulator: Any, run_dag: Any, answers: Any, capfd: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    emulator.fault("row", outcome="invalid_request_error", match="hello 2", times=-1)
    run = run_dag(pipeline(max_error_rate=0.2))
    assert run.state == "success"
    run = run_dag(pipeline(max_error_rate=0.1))
    assert states(run)["labels.load"] == "success"
    assert states(run)["labels.total"] == "failed"
    assert "1 of 6 requests have no usable answer (16.7%)" in capfd.readouterr().out
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 5, "errored": 1}


def test_a_round_that_fails_fails_the_total(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    run = run_dag(pipeline(retry_defaults={"model": "claude-nonesuch"}))
    assert states(run)["labels.submit_2"] == "failed"
    assert states(run)["labels.total"] == "upstream_failed"
    assert run.state == "failed"


def test_each_batch_is_loaded_by_itself_when_it_fans_out(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)
    emulator.fault("row", outcome="overloaded_error", match="hello 5", times=1)
    run = run_dag(pipeline(fan_out=True, shard_size=2))
    assert run.state == "success"
    assert sum(ti.task_id == "labels.load" for ti in run.get_task_instances()) == 3
    total = xcom(run, "labels.total")
    assert total["counts"] == {"succeeded": 6}
    assert (total["requests"], total["rows"], len(total["batches"])) == (6, 8, 4)
    assert latest(answers) == {("succeeded", None): 6}


def test_a_mapped_group_is_a_submission_for_each_element(emulator: Any, run_dag: Any, answers: Any) -> None:
    @dag(schedule=None)
    def mapped() -> None:
        @task
        def days() -> list[list[dict[str, Any]]]:
            return [some_requests(2), some_requests(3)]

        @task_group
        def per_day(requests: Any) -> Any:
            return claude_batch(requests=requests, defaults=DEFAULTS, **PLACE).output

        per_day.expand(requests=days())

    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=2)
    run = run_dag(mapped())
    assert run.state == "success"
    totals = [xcom(run, "per_day.claude_batch.total", map_index=index) for index in (0, 1)]
    assert [(total["requests"], total["counts"]) for total in totals] == [(2, {"succeeded": 2}), (3, {"succeeded": 3})]
    assert [total["rounds"] for total in totals] == [2, 2]
    assert latest(answers) == {("succeeded", None): 5}


def test_an_element_without_requests_does_not_skip_what_comes_after_all_elements(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    @dag(schedule=None)
    def by_region() -> None:
        @task
        def build() -> list[list[dict[str, Any]]]:
            return [some_requests(3), []]

        @task_group
        def region(requests: Any) -> Any:
            return claude_batch("labels", requests=requests, defaults=DEFAULTS, rounds=1, **PLACE).output

        @task
        def report(totals: Any) -> list[Any]:
            return [[total["requests"], total["counts"], total["cost_usd"]] for total in totals]

        report(region.expand(requests=build()))

    run = run_dag(by_region())
    assert run.state == "success"
    submits = {ti.map_index: ti.state for ti in run.get_task_instances() if ti.task_id == "region.labels.submit"}
    assert submits == {0: "success", 1: "skipped"}
    cost = xcom(run, "region.labels.total", map_index=0)["cost_usd"]
    empty = [0, {"succeeded": 0}, xcom(run, "region.labels.total", map_index=1)["cost_usd"]]
    assert xcom(run, "report") == [[3, {"succeeded": 3}, cost], empty]
    assert float(empty[-1]) == 0


def test_a_group_whose_wait_is_skipped_at_its_deadline_names_what_is_paid(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    emulator.fault("slow_batch", seconds=4_000)
    run = run_dag(pipeline(timeout=1, soft_fail=True))
    found = states(run)
    assert (found["labels.wait"], found["labels.total"], found["publish"]) == ("skipped", "skipped", "skipped")
    (paid,) = (part["id"] for part in xcom(run, "labels.submit")["batches"])
    assert f"There is nothing to add up yet. Paid and not loaded: 1 batch, {paid}." in capfd.readouterr().out
    total = xcom(run, "labels.total", key="claude_batch")
    assert (total["requests"], total["counts"], total["not_loaded"]) == (6, {"missing": 6}, [paid])


def test_an_element_whose_wait_is_skipped_does_not_skip_what_comes_after_all_elements(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    @dag(schedule=None)
    def by_region() -> None:
        @task_group
        def region(requests: Any) -> Any:
            given: dict[str, Any] = {"timeout": 1, "soft_fail": True, "rounds": 0, **PLACE}
            return claude_batch("labels", requests=requests, defaults=DEFAULTS, **given).output

        @task
        def report(totals: Any) -> list[Any]:
            return [total["counts"] for total in totals]

        report(region.expand(requests=[some_requests(3), some_requests(2, "Other")]))

    emulator.fault("slow_batch", seconds=4_000)
    run = run_dag(by_region())
    assert run.state == "success"
    assert sorted(xcom(run, "report"), key=str) == [{"missing": 3}, {"succeeded": 2}]


def canceled_in_part(**arguments: Any) -> Any:
    """Two batches: one has ended with a failure, and one is canceled at the deadline."""
    return pipeline(4, shard_size=2, timeout=1, on_timeout="cancel", poke_interval=5, rounds=1, **arguments)


def test_what_was_canceled_at_the_deadline_is_not_sent_again_and_what_failed_is(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    emulator.fault("slow_batch", seconds=0)
    emulator.fault("slow_batch", seconds=4_000)
    emulator.fault("row", outcome="overloaded_error", match="hello 0", times=1)
    run = run_dag(canceled_in_part())
    assert run.state == "success"
    assert [call["requests"] for call in emulator.journal(operation="create")] == [2, 2, 1]
    total = xcom(run, "labels.total")
    assert (total["counts"], total["retryable"]) == ({"succeeded": 2, "canceled": 2}, 2)
    said = "Not sent again: 2 requests, canceled at the deadline. retry_canceled=True sends them again."
    assert said in capfd.readouterr().out


def test_a_round_in_which_all_was_canceled_at_the_deadline_is_the_last(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("slow_batch", seconds=4_000, times=2)
    run = run_dag(canceled_in_part())
    assert (states(run)["labels.submit_2"], states(run)["labels.total"]) == ("skipped", "success")
    assert [call["requests"] for call in emulator.journal(operation="create")] == [2, 2]
    assert xcom(run, "labels.total")["counts"] == {"canceled": 4}


def test_what_was_canceled_at_the_deadline_is_sent_again_where_that_is_asked_for(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("slow_batch", seconds=4_000)
    run = run_dag(canceled_in_part(retry_canceled=True))
    assert [call["requests"] for call in emulator.journal(operation="create")] == [2, 2, 2]
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 4}


def test_a_mapped_group_cannot_fan_out() -> None:
    @dag(schedule=None)
    def mapped() -> None:
        @task_group
        def per_day(requests: Any) -> None:
            claude_batch(requests=requests, fan_out=True, **PLACE)

        per_day.expand(requests=[[1], [2]])

    with pytest.raises(Misconfigured, match="does not work in a task group that is mapped"):
        mapped()


def test_a_mapped_upstream_is_one_submission(emulator: Any, run_dag: Any, answers: Any) -> None:
    @dag(schedule=None)
    def gathered() -> None:
        @task
        def part(number: int) -> list[dict[str, Any]]:
            return [{**request, "custom_id": f"{number}-{request['custom_id']}"} for request in some_requests(2)]

        claude_batch(requests=part.expand(number=[1, 2]), defaults=DEFAULTS, **PLACE)

    run = run_dag(gathered())
    assert xcom(run, "claude_batch.total")["counts"] == {"succeeded": 4}


class Label(BaseModel):
    label: str


class Sized(BaseModel):
    size: int


def test_every_argument_reaches_its_task() -> None:
    given: dict[str, Any] = {
        "shard_size": 5,
        "max_requests": 100,
        "max_cost_usd": 1.5,
        "preflight": 2,
        "prime_cache": True,
        "on_invalid": "skip",
    }
    waited = {
        "poke_interval": 30.0,
        "deferrable": False,
        "on_timeout": "cancel",
        "cancel_on_kill": True,
        "soft_fail": True,
        "never_fail": False,
    }
    made = pipeline(**given, **waited, columns=Label, conn_id="other", default_args={"retries": 7, "pool": "claude"})
    submit, again = made.get_task("labels.submit"), made.get_task("labels.submit_2")
    assert {name: getattr(submit, name) for name in given} == given
    assert (again.preflight, again.prime_cache, again.max_requests) == (0, False, None)
    assert {getattr(again, name) for name in ("shard_size", "on_invalid")} == {5, "skip"}
    for name in ("labels.wait", "labels.wait_2"):
        assert {key: getattr(made.get_task(name), key) for key in waited} == waited
    assert submit.columns is made.get_task("labels.load_3").columns is Label
    assert (submit.conn_id, again.conn_id) == ("other", "other")
    assert {(one.retries, one.pool) for name, one in made.task_dict.items() if "." in name} == {(7, "claude")}


@pytest.mark.parametrize("of_the_dag", [True, False])
def test_what_all_tasks_take_by_default_reaches_the_tasks_of_the_group(of_the_dag: bool) -> None:
    given = {
        "conn_id": "claude_prod",
        "columns": Label,
        "defaults": {"model": "m", "max_tokens": 5},
        "max_error_rate": 0.1,
        "trigger_rule": "all_success",
        "preflight": 3,
        "reuse_from": ("warehouse", "answers"),
    }
    with DAG("by_default", schedule=None, default_args=given if of_the_dag else {}) as made:
        own = {} if of_the_dag else {"default_args": given}
        claude_batch("labels", requests=[], retry_defaults={"max_tokens": 9}, **PLACE, **own)
    tasks = {name.removeprefix("labels."): one for name, one in made.task_dict.items()}
    assert {tasks[name].conn_id for name in ("submit", "submit_2", "wait", "load_3")} == {"claude_prod"}
    assert {tasks[name].columns for name in ("submit", "submit_3", "load", "load_2")} == {Label}
    assert [tasks[name].defaults["max_tokens"] for name in ("submit", "submit_2", "submit_3")] == [5, 9, 9]
    assert {tasks[name].defaults["model"] for name in ("submit", "submit_2")} == {"m"}
    assert [tasks[name].max_error_rate for name in ("load", "load_2", "total")] == [None, None, 0.1]
    assert [(tasks[name].preflight, tasks[name].reuse_from) for name in ("submit", "submit_2")] == [
        (3, ("warehouse", "answers")),
        (0, None),
    ]
    assert tasks["total"].trigger_rule == "none_failed"


def test_what_is_given_to_the_group_comes_before_what_all_tasks_take_by_default() -> None:
    by_default = {"conn_id": "a", "columns": Label, "max_error_rate": 0.1, "defaults": {"model": "m"}}
    with DAG("given", schedule=None, default_args=by_default) as made:
        given: dict[str, Any] = {"conn_id": "b", "columns": Sized, "max_error_rate": 0, "defaults": {"model": "n"}}
        claude_batch("labels", requests=[], **given, **PLACE)
    submit, again = made.get_task("labels.submit"), made.get_task("labels.submit_2")
    assert (submit.conn_id, again.conn_id, submit.columns) == ("b", "b", Sized)
    assert submit.defaults == again.defaults == {"model": "n"}
    assert made.get_task("labels.total").max_error_rate == 0


def test_defaults_may_come_from_a_task(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)

    @dag(schedule=None)
    def chosen() -> None:
        @task
        def choose() -> dict[str, Any]:
            return DEFAULTS

        claude_batch("labels", requests=some_requests(3), defaults=choose(), **PLACE)

    run = run_dag(chosen())
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 3}
    assert xcom(run, "labels.submit_2")["models"] == [DEFAULTS["model"]]


def test_retry_defaults_over_defaults_that_come_from_a_task_are_refused() -> None:
    with DAG("chosen", schedule=None):

        @task
        def choose() -> dict[str, Any]:
            return DEFAULTS

        with pytest.raises(Misconfigured, match="retry_defaults= goes over a dict, and defaults= is only known when"):
            claude_batch("labels", requests=[], defaults=choose(), retry_defaults={"max_tokens": 9}, **PLACE)


@pytest.mark.parametrize(
    ("limits", "cut", "attempt"),
    [
        ([{}, 200], 100, 2),
        ([200, {}, 300], 200, 3),
        ([200, 200, 300], 200, 3),
        ([50, 90, 100, 101], 100, 2),
        ([{}, {}, 200], 100, 2),
    ],
)
def test_a_round_that_would_come_too_late_for_truncated_answers_is_refused(
    limits: list[Any], cut: int, attempt: int
) -> None:
    over = [{"max_tokens": one} if isinstance(one, int) else one for one in limits]
    said = rf"what was cut at {cut} is not sent again by submit_{attempt},"
    with pytest.raises(Misconfigured, match=said):
        pipeline(defaults={"max_tokens": 100}, retry_defaults=over, rounds=len(over))


@pytest.mark.parametrize(
    ("limits", "rounds"), [([200, 300], 2), ([200, 300, {}], 3), ([{}, 200], 1), ([50, 90, 100], 3), ([], 2)]
)
def test_rounds_that_allow_more_and_more_are_taken(limits: list[Any], rounds: int) -> None:
    over = [{"max_tokens": one} if isinstance(one, int) else one for one in limits]
    assert pipeline(defaults={"max_tokens": 100}, retry_defaults=over, rounds=rounds)
    assert pipeline(defaults={}, retry_defaults=[{}, {"max_tokens": 5}])  # each request says it itself


def test_truncated_answers_get_more_room_round_by_round(emulator: Any, run_dag: Any, answers: Any) -> None:
    short, limits = {**DEFAULTS, "max_tokens": 3}, [{"max_tokens": 4}, {"max_tokens": 512}]
    run = run_dag(pipeline(defaults=short, retry_defaults=limits))
    total = xcom(run, "labels.total")
    assert (total["counts"], total["problems"], total["rounds"]) == ({"succeeded": 6}, {}, 3)


def test_an_odd_number_of_rounds_is_refused() -> None:
    for rounds in (-1, 1.5, "2"):
        with pytest.raises(Misconfigured, match="rounds takes a whole number from 0 on"):
            pipeline(rounds=rounds)


def test_an_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"takes no shard_sise: it takes .*shard_size"):
        pipeline(shard_sise=5)
    with pytest.raises(TypeError, match=r"takes no retries: .*such as retries or pool, as default_args"):
        pipeline(retries=5)


def test_what_hangs_on_the_group_hangs_on_its_total() -> None:
    @dag(schedule=None)
    def around() -> None:
        @task
        def before() -> None: ...

        @task
        def after() -> None: ...

        before() >> claude_batch(requests=[], **PLACE) >> after()

    made = around()
    assert made.get_task("after").upstream_task_ids == {"claude_batch.total"}
    assert made.get_task("before").downstream_task_ids == {"claude_batch.submit"}


def test_it_survives_being_serialized() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    serialized = DagSerialization.serialize_dag(pipeline(columns=Label, fan_out=True, shard_size=2))
    back = DagSerialization.deserialize_dag(json.loads(json.dumps(serialized)))
    assert "labels.total" in back.task_dict
    group = back.task_group.children["labels"]
    pair = group.children["labels.each_batch"]
    assert set(pair.children) == {"labels.wait", "labels.load"}
    assert {*group.children, *pair.children} - {"labels.each_batch"} == {
        name for name in back.task_dict if name.startswith("labels.")
    }
