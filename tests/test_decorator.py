"""@task.claude_batch: what a function returns is submitted, whatever happens in between."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task, task_group
from runs import rendered, states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import ClaudeBatchResultsOperator, ClaudeBatchSensor, SqlRequests, submit

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture
def sqlite_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database behind the connection `leads`."""
    monkeypatch.setenv("AIRFLOW_CONN_LEADS", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "x.sqlite")}))


def submitted_texts(emulator: Any) -> list[str]:
    ids = [call["batch_id"] for call in emulator.journal(operation="create", status=200)]
    return [r["params"]["messages"][0]["content"] for one in ids for r in emulator.submitted(one)]


def test_what_a_function_returns_is_submitted(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = connect_warehouse("sqlite", tmp_path, monkeypatch)

    @dag(schedule=None)
    def decorated() -> None:
        @task
        def count() -> int:
            return 3

        @task.claude_batch(defaults=DEFAULTS)
        def labels(number: int, dag_run: Any = None) -> list[dict[str, Any]]:
            return some_requests(number, f"Hello from {dag_run.dag_id}")

        waited = ClaudeBatchSensor(task_id="wait", batch=labels(count()))
        ClaudeBatchResultsOperator(task_id="load", batch=waited.output, warehouse_conn_id="warehouse", table="t")

    run = run_dag(decorated())
    assert run.state == "success"
    assert submitted_texts(emulator) == [f"Hello from decorated {n}" for n in range(3)]
    assert xcom(run, "labels")["submit_task"] == "labels"
    assert warehouse.query("SELECT count(*) FROM t_latest WHERE status = 'succeeded'") == [(3,)]


def test_a_function_may_yield_or_return_any_source(emulator: Any, run_dag: Any, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"custom_id": "x", "params": {"messages": [{"role": "user", "content": "from a file"}]}}\n')

    @dag(schedule=None)
    def sources() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def from_a_generator() -> Any:
            yield from some_requests(2, "yielded")

        @task.claude_batch(defaults=DEFAULTS)
        def from_a_file() -> str:
            return str(path)

        @task.claude_batch(defaults=DEFAULTS)
        def from_a_query() -> SqlRequests:
            return SqlRequests("leads", "SELECT 1 AS id, 'from a query' AS body", custom_id="id", prompt="body")

        from_a_generator() >> from_a_file() >> from_a_query()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_LEADS", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "empty.sqlite")}))
        run = run_dag(sources())
    assert run.state == "success"
    assert submitted_texts(emulator) == ["yielded 0", "yielded 1", "from a file", "from a query"]


def test_nothing_returned_is_skipped(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def empty() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def labels() -> list[dict[str, Any]]:
            return []

        ClaudeBatchSensor(task_id="wait", batch=labels())

    assert states(run_dag(empty())) == {"labels": "skipped", "wait": "skipped"}


def test_a_submission_that_waits_for_room_asks_the_function_again(
    emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_FIRST_WAIT", 0.1)
    emulator.fault("queue_full", times=2)
    calls = []

    @dag(schedule=None)
    def patient() -> None:
        @task.claude_batch(defaults=DEFAULTS, shard_size=2)
        def labels(text: str) -> list[dict[str, Any]]:
            calls.append(text)
            return some_requests(5, text)

        labels("Hello again")

    run = run_dag(patient())
    assert run.state == "success"
    assert len(calls) >= 2
    assert set(calls) == {"Hello again"}
    assert [part["requests"] for part in xcom(run, "labels")["batches"]] == [2, 2, 1]
    assert submitted_texts(emulator) == [f"Hello again {n}" for n in range(5)]


def test_it_maps_like_any_task(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def mapped() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def labels(day: str, count: int) -> list[dict[str, Any]]:
            return some_requests(count, day)

        labels.partial(count=2).expand(day=["Monday", "Tuesday"])

    run = run_dag(mapped())
    assert run.state == "success"
    assert sorted(submitted_texts(emulator)) == ["Monday 0", "Monday 1", "Tuesday 0", "Tuesday 1"]
    assert xcom(run, "labels", map_index=1)["map_index"] == 1


def test_prompts_stay_out_of_the_rendered_fields(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def quiet() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def labels() -> list[dict[str, Any]]:
            return some_requests(2, "{{ 7 * 6 }} a secret prompt")

        labels()

    run = run_dag(quiet())
    assert submitted_texts(emulator)[0].startswith("{{ 7 * 6 }}")
    assert "secret" not in str(rendered(run, "labels"))


TEMPLATE = "a secret {{ 7 * 6 }} {% raw %}"


@task
def give(value: Any) -> Any:
    return value


@task
def words() -> list[str]:
    return [TEMPLATE]


def build(words: Any, number: int = 0) -> Any:
    """Make a request of each word; braces and all, each is one prompt."""
    for place, word in enumerate(words):
        message = {"role": "user", "content": word}
        yield {"custom_id": f"{number}-{place}", "params": {"messages": [message]}}


def build_one(word: str) -> Any:
    return build([word])


def build_first(parts: Any) -> Any:
    return build(parts[0])


@task_group
def each(words: Any) -> None:
    labels()(words)


def labels(function: Any = build, **arguments: Any) -> Any:
    return task.claude_batch(task_id="labels", defaults=DEFAULTS, **arguments)(function)


ARGUMENTS: dict[str, Any] = {
    "literal": lambda: labels()([TEMPLATE]),
    "literal text": lambda: labels(build_one)(TEMPLATE),
    "by name": lambda: labels()(words=(TEMPLATE,)),
    "XCom": lambda: labels()(words()),
    "XCom in a list": lambda: labels(build_first)([words()]),
    "XComs of a mapped task": lambda: labels()(give.expand(value=words())),
    "map": lambda: labels()(words().map(lambda word: word)),
    "default_args": lambda: labels(default_args={"words": [TEMPLATE]})(number=1),
    "expand": lambda: labels().expand(words=[[TEMPLATE]]),
    "expand over an XCom": lambda: labels().expand(words=words().map(lambda word: [word])),
    "partial": lambda: labels().partial(words=[TEMPLATE]).expand(number=[1]),
    "partial of an XCom": lambda: labels().partial(words=words()).expand(number=give([1])),
    "expand_kwargs": lambda: labels().expand_kwargs(words().map(lambda word: {"words": [word], "number": 1})),
    "mapped group": lambda: each.expand(words=words().map(lambda word: [word])),
}


@pytest.mark.parametrize("form", ARGUMENTS)
def test_arguments_are_data_and_stay_out_of_the_rendered_fields(form: str, emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def arguments() -> None:
        ARGUMENTS[form]()

    a_dag = arguments()
    (submit,) = [one for name, one in a_dag.task_dict.items() if name.endswith("labels")]
    assert all(one is submit or one.downstream_task_ids for one in a_dag.tasks)
    run = run_dag(a_dag)
    assert run.state == "success"
    assert submitted_texts(emulator) == [TEMPLATE]
    (fields,) = rendered(run, submit.task_id)
    assert {"op_args", "op_kwargs"} <= fields.keys()
    assert "secret" not in json.dumps(fields)


def test_a_function_gets_its_arguments_as_in_an_ordinary_task(emulator: Any, run_dag: Any) -> None:
    def types(*values: Any, **named: Any) -> list[str]:
        return [type(value).__name__ for value in (*values, named["a"], named["b"])]

    def build_types(*values: Any, **named: Any) -> list[dict[str, Any]]:
        return [{"custom_id": "a", "params": {"messages": [{"role": "user", "content": f"{types(*values, **named)}"}]}}]

    @dag(schedule=None)
    def typed() -> None:
        mapped, numbers = give.expand(value=[1, 2]), give([1])
        values = (("a", "tuple"), mapped, mapped.map(str), numbers.zip(numbers), numbers.concat(numbers), Path("x"), 1)
        task(task_id="ordinary")(types)(*values, a={"nested": mapped}, b=numbers)
        task.claude_batch(task_id="labels", defaults=DEFAULTS)(build_types)(*values, a={"nested": mapped}, b=numbers)

    run = run_dag(typed())
    assert submitted_texts(emulator) == [str(xcom(run, "ordinary"))]


def test_what_declares_its_own_templates_is_rendered(emulator: Any, run_dag: Any, sqlite_leads: None) -> None:
    @dag(schedule=None)
    def declared() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def labels(query: SqlRequests) -> SqlRequests:
            return query

        labels(SqlRequests("leads", "SELECT 1 AS id, '{{ dag.dag_id }}' AS body", custom_id="id", prompt="body"))

    run_dag(declared())
    assert submitted_texts(emulator) == ["declared"]


@pytest.mark.parametrize(("day", "is_warned_of"), [("{{ ds }}", True), ("Monday", False)])
def test_a_text_that_looks_like_a_template_is_warned_of(
    day: str, is_warned_of: bool, emulator: Any, run_dag: Any, capfd: Any
) -> None:
    @dag(schedule=None)
    def mistaken() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def labels(day: str, run_id: Any = None) -> list[dict[str, Any]]:
            return some_requests(1, f"{day} {run_id.partition('__')[0]}")

        labels(day)

    run_dag(mistaken())
    assert submitted_texts(emulator) == [f"{day} manual 0"]
    assert ("The argument day holds {{ and stays as it is" in capfd.readouterr().out) is is_warned_of


def test_arguments_are_there_after_a_pause(emulator: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_FIRST_WAIT", 0.1)
    emulator.fault("queue_full", times=2)

    @dag(schedule=None)
    def patient() -> None:
        labels(shard_size=1).partial(words=words()).expand(number=[1, 2])

    assert run_dag(patient()).state == "success"
    assert submitted_texts(emulator) == [TEMPLATE, TEMPLATE]


def test_the_receipt_may_be_several_xcoms(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def several() -> None:
        @task
        def tell(count: int) -> int:
            return count

        tell(labels(multiple_outputs=True)(["Hello", "Hi"])["requests"])
        labels(multiple_outputs=None).override(task_id="one")(["Hello"])

    run = run_dag(several())
    assert xcom(run, "tell") == 2
    assert xcom(run, "labels")["requests"] == 2
    assert xcom(run, "one", key="requests") is None


def test_a_retry_sends_only_what_failed(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_warehouse("sqlite", tmp_path, monkeypatch)
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=1)

    @dag(schedule=None)
    def retried() -> None:
        def build() -> list[dict[str, Any]]:
            return some_requests(3)

        first = task.claude_batch(task_id="first", defaults=DEFAULTS)(build)()
        waited = ClaudeBatchSensor(task_id="wait", batch=first)
        loaded = ClaudeBatchResultsOperator(
            task_id="load", batch=waited.output, warehouse_conn_id="warehouse", table="t"
        )
        task.claude_batch(task_id="again", defaults=DEFAULTS, retry_of=loaded.output)(build)()

    run = run_dag(retried())
    assert run.state == "success"
    assert (xcom(run, "again")["requests"], xcom(run, "again")["attempt"]) == (1, 2)
