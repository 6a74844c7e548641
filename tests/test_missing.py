"""Requests that no line of the results speaks of: they become rows where the source says which they are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import dag, task, task_group
from runs import states, xcom
from tries import DEFAULTS, Task, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    SqlRequests,
    shards,
)
from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.fan_out import split
from airflow_provider_claude_batch.load import Loader
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import Part, Receipt, replace
from airflow_provider_claude_batch.roster import Roster
from airflow_provider_claude_batch.row import COLUMNS
from airflow_provider_claude_batch.shard import hash_ids

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


def batches_with_one_missing(run: Any, answers: Any) -> int:
    """Count the batches of which one request is missing; all nine have a row, and no batch misses two."""
    assert run.state == "success"
    rows = answers.query("SELECT batch_id, custom_id, status, retryable FROM answers")
    assert len(rows) == len({custom_id for _, custom_id, _, _ in rows}) == 9
    missing = [(batch_id, custom_id) for batch_id, custom_id, status, again in rows if status == "missing" and again]
    assert len(missing) == len({batch_id for batch_id, _ in missing})
    return len(missing)


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
    assert batches_with_one_missing(run, answers) == (3 if shard_size else 1)
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

    assert batches_with_one_missing(run_dag(pipeline(wire)), answers) == 3


def test_the_missing_of_a_mapped_submission_are_its_own(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        parts = build_part.expand(part=[1, 2, 3])
        submits = ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS).expand(requests=parts)
        load(ClaudeBatchSensor(task_id="wait", batch=submits.output).output)

    assert batches_with_one_missing(run_dag(pipeline(wire)), answers) == 3


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
    assert run.state == "success"
    rows = answers.query("SELECT custom_id, status FROM answers")
    assert sorted(custom_id for custom_id, status in rows if status == "errored") == ["r-1", "r-2"]
    assert sorted(custom_id for custom_id, status in rows if status != "errored") == ["r-0", "r-2", "r-3", "r-4"]
    assert [status for _, status in rows].count("missing") == 1


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


def test_one_request_replaced_by_another_is_not_named_in_its_place(
    emulator: Any, run_dag: Any, answers: Any, tmp_path: Path
) -> None:
    emulator.fault("missing_lines", count=9, times=-1)
    path = file_of(tmp_path)

    def wire() -> None:
        @task(trigger_rule="all_done")
        def change() -> None:
            Path(path).write_text(Path(path).read_text().replace('"r-4"', '"other"'))

        waited = ClaudeBatchSensor(task_id="wait", batch=submit(requests=path).output)
        waited >> change() >> load(waited.output)

    run = run_dag(pipeline(wire))
    assert states(run)["load"] == "failed"
    assert answers.query("SELECT count(*) FROM answers") == [(0,)]


def test_what_was_reused_is_never_named_missing(emulator: Any, run_dag: Any, answers: Any) -> None:
    def wire(count: int) -> None:
        submitted = submit(requests=some_after(count), reuse_from=("warehouse", "answers"))
        load(ClaudeBatchSensor(task_id="wait", batch=submitted.output).output)

    @task
    def some_after(count: int) -> list[dict[str, Any]]:
        return some_requests(count)

    run_dag(pipeline(wire, 3))
    emulator.fault("missing_lines", count=1, times=-1)
    run = run_dag(pipeline(wire, 6))
    assert states(run)["load"] == "failed"
    assert xcom(run, "submit")["reused"] == 3
    assert answers.query("SELECT DISTINCT status FROM answers") == [("succeeded",)]


def test_the_missing_of_any_part_are_named_though_requests_of_the_first_were_skipped(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    @task
    def build_some_bad() -> list[dict[str, Any]]:
        requests = some_requests(7)
        requests[1]["params"]["messages"] = []
        return requests

    def wire() -> None:
        parts = shards(submit(requests=build_some_bad(), shard_size=3, on_invalid="skip").output)
        waits = ClaudeBatchSensor.partial(task_id="wait").expand(batch=parts)
        ClaudeBatchResultsOperator.partial(task_id="load", warehouse_conn_id="warehouse", table="answers").expand(
            batch=waits.output
        )

    assert run_dag(pipeline(wire)).state == "success"
    rows = answers.query("SELECT custom_id, status FROM answers")
    assert sorted(custom_id for custom_id, _ in rows) == [f"r-{n}" for n in range(7)]
    assert [custom_id for custom_id, status in rows if status == "errored"] == ["r-1"]
    assert [status for _, status in rows].count("missing") == 2


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3]])
def test_the_missing_of_a_mapped_group_are_its_own(
    numbers: list[int], emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    @task
    def build_odd(part: int) -> list[dict[str, Any]]:
        if part % 2 == 0:
            raise AirflowSkipException
        return [{**request, "custom_id": f"{part}-{request['custom_id']}"} for request in some_requests(3)]

    def wire() -> None:
        @task_group
        def group(part: int) -> None:
            load(ClaudeBatchSensor(task_id="wait", batch=submit(requests=build_odd(part)).output).output)

        group.expand(part=numbers)

    run_dag(pipeline(wire))
    rows = answers.query("SELECT custom_id, status FROM answers")
    odd = [number for number in numbers if number % 2]
    assert sorted(custom_id for custom_id, _ in rows) == [f"{part}-r-{n}" for part in odd for n in range(3)]
    assert [status for _, status in rows].count("missing") == len(odd)


def test_the_missing_of_a_mapped_submission_of_one_list_are_its_own(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        submits = ClaudeBatchOperator.partial(task_id="submit", requests=build(), shard_size=5).expand(
            defaults=[DEFAULTS]
        )
        load(ClaudeBatchSensor(task_id="wait", batch=submits.output).output)

    assert batches_with_one_missing(run_dag(pipeline(wire)), answers) == 2


# What a receipt says is data: the source is read as the Dag declares it


def edited(received: Any, said: Any) -> Any:
    """Return a receipt as somebody with a right to XComs may leave it: its hash is that of some_requests(9)."""
    ids_hash = hash_ids([f"r-{n}" for n in range(9)])

    @task
    def edit(receipt: Any) -> Any:
        return {**receipt, **said, "batches": [{**batch, "ids_hash": ids_hash} for batch in receipt["batches"]]}

    return edit(received)


@pytest.fixture
def salaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A table behind the connection `payroll`, of which no Dag here speaks."""
    import sqlite3
    from contextlib import closing

    path = tmp_path / "payroll.sqlite"
    monkeypatch.setenv("AIRFLOW_CONN_PAYROLL", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    with closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE salaries (x)")
        con.commit()

    def tables() -> list[Any]:
        with closing(sqlite3.connect(path)) as con:
            return con.execute("SELECT name FROM sqlite_master").fetchall()

    return tables


DROP = {"source": {"conn_id": "payroll", "sql": "DROP TABLE salaries", "custom_id": "x"}}


def test_a_query_that_was_written_into_a_receipt_is_not_run(
    emulator: Any, run_dag: Any, answers: Any, salaries: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)

    def wire() -> None:
        waited = ClaudeBatchSensor(task_id="wait", batch=submit(requests=build()).output)
        load(edited(waited.output, DROP))

    assert batches_with_one_missing(run_dag(pipeline(wire)), answers) == 1
    assert salaries() == [("salaries",)]


@pytest.mark.parametrize(
    "said",
    [
        {"source": {"uri": "{file}"}},
        {"source": {"tasks": ["other"]}},
        {"source": {"conn_id": "payroll", "queue": "salaries"}},
        {"submit_task": "other"},
        {"submit_task": "nobody"},
        {"dag_id": "another_dag"},
    ],
)
def test_a_source_that_was_written_into_a_receipt_is_not_believed(
    said: dict[str, Any], emulator: Any, run_dag: Any, answers: Any, salaries: Any, tmp_path: Path, caplog: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    said = json.loads(json.dumps(said).replace("{file}", file_of(tmp_path)))

    def wire() -> None:
        @task
        def other() -> list[dict[str, Any]]:
            return some_requests(9)

        @task
        def build_and_go() -> list[dict[str, Any]]:
            return [{**request, "custom_id": f"x-{request['custom_id']}"} for request in some_requests(9)]

        waited = ClaudeBatchSensor(task_id="wait", batch=submit(requests=build_and_go()).output)
        other() >> waited
        load(edited(waited.output, said))

    assert states(run_dag(pipeline(wire)))["load"] == "failed"
    assert {custom_id[:4] for (custom_id,) in answers.query("SELECT custom_id FROM answers")} == {"x-r-"}
    assert answers.query("SELECT count(*) FROM answers") == [(8,)]
    why = "does not hold the requests of then" if "source" in said else "no task upstream in this Dag submitted them"
    assert why in caplog.text
    assert salaries() == [("salaries",)]


def test_the_missing_of_another_dag_are_counted_and_not_named(
    emulator: Any, run_dag: Any, answers: Any, salaries: Any, caplog: Any, capfd: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    waited = xcom(
        run_dag(pipeline(lambda: ClaudeBatchSensor(task_id="wait", batch=submit(requests=build()).output))), "wait"
    )

    @dag(schedule=None)
    def only_loads() -> None:
        load({**waited, **DROP})

    run = run_dag(only_loads())
    assert states(run) == {"load": "failed"}
    assert xcom(run, "load")["counts"] == {"succeeded": 8, "missing": 1}
    assert "no task upstream in this Dag submitted them" in caplog.text
    assert "1 requests are in no line of the results" in capfd.readouterr().out
    assert salaries() == [("salaries",)]


def test_a_query_with_templates_parameters_and_a_file_is_read_as_the_submission_read_it(
    emulator: Any, run_dag: Any, answers: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    query_of(tmp_path, monkeypatch)
    text = "SELECT id, body FROM {{ dag_run.conf['table'] }} WHERE id >= ? AND '{{ task.task_id }}' = 'submit'"
    (tmp_path / "leads.sql").write_text(f"{text} ORDER BY id -- {'x' * 2_000}")

    @dag(schedule=None, template_searchpath=[str(tmp_path)])
    def pipeline() -> None:
        query = SqlRequests("{{ dag_run.conf['db'] }}", "leads.sql", custom_id="id", prompt="body", parameters=("r-0",))
        load(ClaudeBatchSensor(task_id="wait", batch=submit(requests=query).output).output)

    run = run_dag(pipeline(), run_conf={"table": "leads", "db": "source"})
    assert batches_with_one_missing(run, answers) == 1


def test_the_missing_of_a_submission_mapped_over_paths_are_its_own(
    emulator: Any, run_dag: Any, answers: Any, tmp_path: Path
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    for part in range(3):
        requests = [{**one, "custom_id": f"{part}-{one['custom_id']}"} for one in some_requests(3)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))

    def wire() -> None:
        kwargs = [{"requests": f"{tmp_path}/{{{{ ti.map_index }}}}.jsonl"} for _ in range(3)]
        submits = ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS).expand_kwargs(kwargs)
        load(ClaudeBatchSensor(task_id="wait", batch=submits.output).output)

    assert batches_with_one_missing(run_dag(pipeline(wire)), answers) == 3


def test_a_function_that_returned_the_requests_is_not_called_by_the_load(
    emulator: Any, run_dag: Any, answers: Any, caplog: Any
) -> None:
    emulator.fault("missing_lines", count=1, times=-1)
    calls = []

    def wire() -> None:
        @task.claude_batch(task_id="submit", defaults=DEFAULTS)
        def ask() -> list[dict[str, Any]]:
            calls.append(1)
            return some_requests(9)

        load(ClaudeBatchSensor(task_id="wait", batch=ask()).output)

    assert states(run_dag(pipeline(wire)))["load"] == "failed"
    assert "a function returned them" in caplog.text
    assert calls == [1]


def part_of(ids: list[str], **said: Any) -> tuple[Receipt, Part]:
    part = Part("msgbatch_1", len(ids), **{"first": 0, "ids_hash": hash_ids(ids), **said})
    return Receipt("sub", (part,), dag_id="pipeline", submit_task="submit"), part


def roster_of(requests: Any) -> Roster:
    """Return what names the requests of a Dag that was never run."""
    made = pipeline(lambda: load(submit(requests=requests).output))
    ti = SimpleNamespace(task_id="load", map_index=-1)
    return Roster({"dag": made, "task": made.get_task("load"), "ti": ti})


def test_requests_that_stand_in_the_dag_are_named() -> None:
    assert roster_of([{"custom_id": "a"}, {"custom_id": "b"}])(*part_of(["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("requests", [[], [{"custom_id": "a"}], ["a"], [7], "/no/such/file.jsonl"])
def test_requests_of_another_shape_tell_nothing(requests: Any) -> None:
    with pytest.raises(Misconfigured, match="cannot be told"):
        roster_of(requests)(*part_of(["a", "b"]))


@pytest.mark.parametrize("said", [{"ids_hash": None}, {"first": None}, {"first": -1}, {"requests": -3}])
def test_a_receipt_that_does_not_say_where_a_batch_begins_tells_nothing(said: Any) -> None:
    receipt, part = part_of(["a"])
    with pytest.raises(Misconfigured, match="cannot be told"):
        roster_of([{"custom_id": "a"}])(receipt, replace(part, **said))


def test_an_id_that_was_skipped_first_and_sent_later_stands_where_it_was_sent() -> None:
    receipt, part = part_of(["b", "a", "c"])
    receipt = replace(receipt, invalid={"model is missing": ("a",), "custom_id stands twice": ("b", "a")})
    raw = [{"custom_id": one} for one in ("a", "b", "b", "a", "a", "x" * 99, "c")]
    assert roster_of(raw)(receipt, part) == ["b", "a", "c"]


# The rows of requests that were never sent


@pytest.fixture
def loader(client: Any) -> Loader:
    return Loader(client, PRICES)


@pytest.fixture
def writer(answers: Any) -> Any:
    return open_warehouse("warehouse", "answers", COLUMNS)


def skipped_rows(answers: Any) -> list[Any]:
    return sorted(answers.query("SELECT custom_id FROM answers WHERE batch_id = 'sub_1'"))


def test_the_rows_of_skipped_requests_go_when_nothing_is_skipped_any_more(
    client: Any, emulator: Any, answers: Any, loader: Loader, writer: Any
) -> None:
    sent, _ = Task(client, emulator).finish(some_requests(2))
    whole = replace(sent, submission="sub_1", invalid={"why": ("x", "y")})
    loader.load([whole], writer)
    assert skipped_rows(answers) == [("x",), ("y",)]
    loader.load([replace(whole, invalid=None)], writer)
    assert skipped_rows(answers) == []


def test_the_rows_of_skipped_requests_are_written_once_and_with_the_first_part(
    client: Any, emulator: Any, answers: Any, loader: Loader, writer: Any
) -> None:
    sent, _ = Task(client, emulator).finish(some_requests(3), shard_size=2)
    whole = replace(sent, submission="sub_1", invalid={"why": ("x",)}, reused=5)
    first, again = loader.load([whole, whole], writer)
    assert skipped_rows(answers) == [("x",)]
    assert (first[1].rows, first[0].reused) == (4, 5)
    assert (again[1].rows, again[0].reused, again[0].invalid) == (0, None, None)
    part_1, part_2 = split(whole, 1024)
    assert [tally.rows for _, tally in loader.load([part_2, part_2], writer)] == [1, 0]
    assert skipped_rows(answers) == [("x",)]
    assert [tally.rows for _, tally in loader.load([part_2, part_1], writer)] == [1, 3]
    assert answers.query("SELECT count(*) FROM answers") == [(4,)]


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
