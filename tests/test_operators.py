"""ClaudeBatchOperator and ClaudeBatchResultsOperator as tasks of real Dag runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task
from runs import rendered, states, xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import (
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    load,
)
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.total import ClaudeBatchTotal


@pytest.fixture(params=["duckdb", "sqlite"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


TEMPLATE = "{{ 7 * 6 }} {% raw %} {{ var.value.secret }}"


def submitted_texts(emulator: Any) -> list[str]:
    ids = [call["batch_id"] for call in emulator.journal(operation="create")]
    return [r["params"]["messages"][0]["content"] for batch_id in ids for r in emulator.submitted(batch_id)]


def submit_dag(**arguments: Any) -> Any:
    @dag(schedule=None)
    def one_submission() -> None:
        ClaudeBatchOperator(task_id="submit", **{"defaults": DEFAULTS, **arguments})

    return one_submission()


def test_a_receipt_comes_back_under_both_keys(emulator: Any, run_dag: Any) -> None:
    run = run_dag(submit_dag(requests=some_requests()))
    receipt = xcom(run, "submit")
    assert run.state == "success"
    assert receipt == xcom(run, "submit", key="claude_batch")
    assert receipt["v"] == 1
    assert receipt["requests"] == 3
    assert receipt["attempt"] == 1
    assert receipt["conn_id"] == "anthropic_default"
    assert receipt["submit_task"] == "submit"
    assert receipt["models"] == ["claude-haiku-4-5"]
    assert receipt["estimate_usd"] > 0
    assert [part["requests"] for part in receipt["batches"]] == [3]
    assert receipt["batches"][0]["bytes"] == emulator.journal(operation="create")[0]["body_bytes"]


def test_defaults_go_under_each_request_and_betas_into_the_header(emulator: Any, run_dag: Any) -> None:
    requests = some_requests(2)
    requests[1]["params"]["max_tokens"] = 7
    defaults = {**DEFAULTS, "system": "run {{ dag.dag_id }}", "betas": ["output-300k-2026-03-24"]}
    run = run_dag(submit_dag(requests=requests, defaults=defaults))
    sent = emulator.submitted(xcom(run, "submit")["batches"][0]["id"])
    assert [r["params"]["max_tokens"] for r in sent] == [512, 7]
    assert {r["params"]["system"] for r in sent} == {"run one_submission"}
    assert all("betas" not in r["params"] for r in sent)


@task
def build_plain() -> list[dict[str, Any]]:
    return some_requests(2, TEMPLATE)


@task
def build_lists() -> list[list[dict[str, Any]]]:
    return [some_requests(1, TEMPLATE), some_requests(1, TEMPLATE)]


@task
def build_kwargs() -> list[dict[str, Any]]:
    return [{"requests": some_requests(1, TEMPLATE)}, {"requests": some_requests(1, TEMPLATE)}]


@task
def build_part(part: int) -> list[dict[str, Any]]:
    return [{**request, "custom_id": f"{part}-{request['custom_id']}"} for request in some_requests(1, TEMPLATE)]


def submit(**arguments: Any) -> None:
    ClaudeBatchOperator(task_id="submit", defaults=DEFAULTS, **arguments)


def mapped_submit(**arguments: Any) -> Any:
    return ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS, **arguments)


FORMS: dict[str, Callable[[], Any]] = {
    "inline": lambda: submit(requests=some_requests(2, TEMPLATE)),
    "plain": lambda: submit(requests=build_plain()),
    "mapped upstream": lambda: submit(requests=build_part.expand(part=[1, 2])),
    "expand": lambda: mapped_submit().expand(requests=build_lists()),
    "expand_kwargs": lambda: mapped_submit().expand_kwargs(build_kwargs()),
    "partial": lambda: mapped_submit(requests=build_plain()).expand(shard_size=[2]),
}


def templates_dag(form: str) -> Any:
    @dag(schedule=None)
    def templates() -> None:
        FORMS[form]()

    return templates()


@pytest.mark.parametrize("form", FORMS)
def test_a_template_in_a_prompt_stays_text(form: str, emulator: Any, run_dag: Any) -> None:
    run = run_dag(templates_dag(form))
    assert run.state == "success"
    texts = submitted_texts(emulator)
    assert len(texts) == 2
    assert all(text.startswith(TEMPLATE) for text in texts)
    fields = rendered(run, "submit")
    assert fields
    assert TEMPLATE not in json.dumps(fields)
    assert "42" not in json.dumps([f["requests"] for f in fields])


def test_ten_thousand_requests_cost_the_rendered_fields_nothing(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def many() -> None:
        @task(show_return_value_in_logs=False)
        def build() -> list[dict[str, Any]]:
            return some_requests(10_000, "x" * 500)

        ClaudeBatchOperator(task_id="submit", requests=build(), defaults=DEFAULTS)

    run = run_dag(many())
    assert run.state == "success"
    assert emulator.journal(operation="create")[0]["requests"] == 10_000
    (fields,) = rendered(run, "submit")
    assert fields["requests"] == "from build"
    assert len(json.dumps(fields)) < 300


def test_a_mapped_upstream_is_one_submission(emulator: Any, run_dag: Any) -> None:
    run = run_dag(templates_dag("mapped upstream"))
    assert xcom(run, "submit")["requests"] == 2
    assert len(emulator.journal(operation="create")) == 1


@pytest.mark.parametrize("nothing", [[], None, [[], []]])
def test_nothing_to_send_is_skipped_and_says_so(nothing: Any, emulator: Any, run_dag: Any, capfd: Any) -> None:
    @dag(schedule=None)
    def empty() -> None:
        @task
        def build() -> Any:
            return nothing

        submit = ClaudeBatchOperator(task_id="submit", requests=build(), defaults=DEFAULTS)
        ClaudeBatchSensor(task_id="wait", batch=submit.output)

    run = run_dag(empty())
    assert states(run) == {"build": "success", "submit": "skipped", "wait": "skipped"}
    assert "There is nothing to send" in capfd.readouterr().out
    assert emulator.journal(operation="create") == []


def test_a_shard_size_makes_several_batches_full_ones_first(emulator: Any, run_dag: Any) -> None:
    run = run_dag(submit_dag(requests=some_requests(7), shard_size=3))
    receipt = xcom(run, "submit")
    assert [part["requests"] for part in receipt["batches"]] == [3, 3, 1]
    assert len({part["mark"] for part in receipt["batches"]}) == 3


def bad(**change: Any) -> list[dict[str, Any]]:
    request = some_requests(1)[0]
    return [{**request, "params": {**request["params"], **change}}]


MISTAKES = {
    "There is no connection 'nowhere'": {"requests": some_requests(), "conn_id": "nowhere"},
    "does not accept the key of connection 'wrong_key'": {"requests": some_requests(), "conn_id": "wrong_key"},
    "There is no model 'claude-typo' for connection 'anthropic_default'": {"requests": bad(model="claude-typo")},
    "custom_id stands twice": {"requests": some_requests() + some_requests()},
    "model is missing": {"requests": some_requests(), "defaults": {"max_tokens": 5}},
    "max_tokens must be a whole number": {"requests": bad(max_tokens=0)},
    "betas are a header of the whole batch": {"requests": bad(betas=["x"])},
    "batches do not take stream": {"requests": bad(stream=True)},
    "requests= takes a list of dicts, a path or URI": {"requests": "requests.csv"},
    "max_requests allows 2 requests, and this submission has 3": {"requests": some_requests(), "max_requests": 2},
    "max_cost_usd allows $0.00": {"requests": some_requests(), "max_cost_usd": 0.0},
    "is of type 'openai'": {"requests": some_requests(), "conn_id": "of_another_kind"},
    "has no API key": {"requests": some_requests(), "conn_id": "keyless"},
    "does not make a client of the API": {"requests": some_requests(), "conn_id": "odd_kwargs"},
    "defaults= takes a dict of params": {"requests": some_requests(), "defaults": "{{ dag.dag_id }}"},
    "betas in defaults takes a name": {"requests": some_requests(), "defaults": {**DEFAULTS, "betas": 5}},
    "a request is a dict with custom_id and params, not NoneType": {"requests": [None, *some_requests()]},
    "The API at http://127.0.0.1:9 (connection 'unreachable') cannot be reached": {
        "requests": some_requests(),
        "conn_id": "unreachable",
    },
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_one_clear_sentence_and_nothing_is_paid(
    sentence: str, emulator: Any, run_dag: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.fault("status", status=401, type="authentication_error", message="API key is invalid.", times=-1)
    if "wrong_key" not in sentence:
        emulator.clear_faults()
    reached = {"conn_type": "anthropic", "password": "emulator-key", "host": emulator.base_url}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG_KEY", json.dumps(reached))
    monkeypatch.setenv("AIRFLOW_CONN_UNREACHABLE", json.dumps({**reached, "host": "http://127.0.0.1:9"}))
    monkeypatch.setenv("AIRFLOW_CONN_OF_ANOTHER_KIND", json.dumps({**reached, "conn_type": "openai"}))
    monkeypatch.setenv("AIRFLOW_CONN_KEYLESS", json.dumps({**reached, "password": ""}))
    odd = {"anthropic_client_kwargs": {"no_such_argument": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_ODD_KWARGS", json.dumps({**reached, "extra": odd}))
    run = run_dag(submit_dag(**MISTAKES[sentence]))
    assert run.state == "failed"
    assert sentence in capfd.readouterr().out
    assert [call for call in emulator.journal(operation="create") if call["status"] == 200] == []


def load_dag(batch: Any, **arguments: Any) -> Any:
    @dag(schedule=None)
    def one_load() -> None:
        ClaudeBatchResultsOperator(
            task_id="load", batch=batch, **{"warehouse_conn_id": "warehouse", "table": "answers", **arguments}
        )

    return one_load()


@pytest.fixture
def batch_id(emulator: Any, run_dag: Any) -> str:
    """A batch of three requests that has ended."""
    run = run_dag(submit_dag(requests=some_requests()))
    emulator.advance(3600)
    return xcom(run, "submit")["batches"][0]["id"]


def test_a_bare_id_loads_and_its_ids_are_read_back(batch_id: str, run_dag: Any, warehouse: Any) -> None:
    run = run_dag(load_dag(batch_id))
    assert run.state == "success"
    found = warehouse.query("SELECT custom_id, status, dag_id, submission FROM answers ORDER BY 1")
    assert found == [(f"r-{n}", "succeeded", "one_load", batch_id) for n in range(3)]
    receipt = xcom(run, "load")
    assert receipt["rows"] == 3
    assert receipt["counts"] == {"succeeded": 3}
    assert 0 < receipt["cost_usd"] < receipt["live_cost_usd"]


def test_a_batch_of_somebody_else_keeps_its_ids(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    from anthropic import Anthropic

    ids = ["their-own-id-pAAAAAAAjPYHCtX", "42"]
    requests = [{"custom_id": i, "params": {**DEFAULTS, **some_requests(1)[0]["params"]}} for i in ids]
    with Anthropic(api_key="emulator-key", base_url=emulator.base_url) as sdk:
        batch = sdk.messages.batches.create(requests=requests)  # type: ignore[arg-type]
    emulator.advance(3600)
    run_dag(load_dag(batch.id))
    assert sorted(warehouse.query("SELECT custom_id, request_hash FROM answers")) == [(i, None) for i in sorted(ids)]


LOAD_MISTAKES = {
    "There is no connection 'nowhere'": {"warehouse_conn_id": "nowhere"},
    "'1; DROP TABLE one_load' is not a table name": {"table": "1; DROP TABLE {{ dag.dag_id }}"},
    "A DuckDB database in memory is gone with the task": {"warehouse_conn_id": "in_memory"},
    "/no/folder of connection 'no_folder' does not exist here": {"warehouse_conn_id": "no_folder"},
    "There is no writer for connections of type 'http'": {"warehouse_conn_id": "http"},
    "There is no writer for connections of type 'generic': name one": {"warehouse_conn_id": "generic"},
    "is not the id of a Message Batch": {"batch": "batch-7"},
    "The API does not know batch msgbatch_gone": {"batch": "msgbatch_gone"},
}


@pytest.mark.parametrize("sentence", LOAD_MISTAKES)
def test_a_mistake_of_a_load_is_one_clear_sentence(
    sentence: str, batch_id: str, run_dag: Any, tmp_path: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_PAUSES", (0.0,))
    connections = {
        "WAREHOUSE": {"conn_type": "duckdb", "host": str(tmp_path / "w.duckdb")},
        "IN_MEMORY": {"conn_type": "duckdb"},
        "NO_FOLDER": {"conn_type": "duckdb", "host": str(tmp_path / "no" / "folder" / "w.duckdb")},
        "HTTP": {"conn_type": "http", "host": "http://127.0.0.1:9"},
        "GENERIC": {"conn_type": "generic", "host": "127.0.0.1"},
    }
    for name, value in connections.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(value))
    run = run_dag(load_dag(**{"batch": batch_id, **LOAD_MISTAKES[sentence]}))
    assert run.state == "failed"
    assert sentence in capfd.readouterr().out


def test_a_running_batch_is_not_loaded(emulator: Any, run_dag: Any, warehouse: Any, capfd: Any) -> None:
    emulator.clock(freeze=True)
    run = run_dag(submit_dag(requests=some_requests()))
    loaded = run_dag(load_dag(xcom(run, "submit")))
    assert loaded.state == "failed"
    assert "is still in_progress" in capfd.readouterr().out


def test_too_many_errors_fail_the_task_after_everything_is_written(
    emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="hello 1", times=-1)
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(3600)
    run = run_dag(load_dag(receipt, max_error_rate=0.1))
    assert run.state == "failed"
    assert "1 of 3 requests have no usable answer (33.3%)" in capfd.readouterr().out
    assert sorted(warehouse.query("SELECT status FROM answers")) == [("errored",), ("succeeded",), ("succeeded",)]
    assert xcom(run, "load", key="claude_batch")["retry_ids"] == ["r-1"]


@pytest.mark.parametrize("bare", [False, True])
def test_requests_without_a_line_are_counted_and_fail_the_task_after_writing(
    bare: bool, emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(3600)
    emulator.fault("missing_lines", count=1, times=-1)
    run = run_dag(load_dag(receipt["batches"][0]["id"] if bare else receipt))
    assert run.state == "failed"
    assert "1 requests are in no line of the results" in capfd.readouterr().out
    assert len(warehouse.query("SELECT * FROM answers")) == 2
    assert xcom(run, "load", key="claude_batch")["counts"] == {"succeeded": 2, "missing": 1}


@pytest.mark.parametrize("fault", ["cut_results", "duplicate_lines", "foreign_lines", "no_final_newline"])
def test_whatever_happens_to_the_stream_each_request_is_one_row(
    fault: str, emulator: Any, run_dag: Any, warehouse: Any
) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests(200))), "submit")
    emulator.advance(3600)
    emulator.fault(fault, **({"bytes": 20_000} if fault == "cut_results" else {}))
    run = run_dag(load_dag(receipt))
    assert run.state == "success"
    assert len(warehouse.query("SELECT DISTINCT custom_id FROM answers")) == 200
    assert len(warehouse.query("SELECT custom_id FROM answers")) == 200


def test_lines_that_are_no_results_are_kept_outside_the_views(emulator: Any, run_dag: Any, warehouse: Any) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(3600)
    emulator.fault("garbage_lines")
    run = run_dag(load_dag(receipt))
    assert run.state == "success"
    assert xcom(run, "load")["counts"]["unreadable"] >= 1
    assert warehouse.query("SELECT count(*) FROM answers_latest") == [(3,)]
    assert warehouse.query("SELECT count(*) FROM answers WHERE custom_id IS NULL AND text IS NOT NULL")[0][0] >= 1


def test_loading_twice_leaves_the_same_rows(batch_id: str, run_dag: Any, warehouse: Any) -> None:
    rows = []
    for _ in range(2):
        assert run_dag(load_dag([batch_id])).state == "success"
        rows.append(warehouse.query("SELECT custom_id, text, cost_usd, message_id FROM answers ORDER BY 1"))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_a_batch_named_twice_is_loaded_once(batch_id: str, run_dag: Any, warehouse: Any) -> None:
    run = run_dag(load_dag([batch_id, batch_id]))
    assert run.state == "success"
    assert warehouse.query("SELECT count(*) FROM answers") == [(3,)]
    assert [receipt["rows"] for receipt in xcom(run, "load")] == [3, 0]


def test_every_answer_arrives_to_the_letter(emulator: Any, run_dag: Any, warehouse: Any, http: Any) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests(300))), "submit")
    emulator.advance(3600)
    run_dag(load_dag(receipt))
    key = {"x-api-key": "emulator-key"}
    lines = http.get(f"/v1/messages/batches/{receipt['batches'][0]['id']}/results", headers=key).content.split(b"\n")
    said = {result["custom_id"][:-16]: result["result"]["message"] for result in map(json.loads, filter(None, lines))}
    rows = warehouse.query("SELECT custom_id, text, content, input_tokens + output_tokens FROM answers")
    assert {row[0] for row in rows} == said.keys()
    for custom_id, text, content, tokens in rows:
        message = said[custom_id]
        assert text == "".join(block["text"] for block in message["content"])
        assert json.loads(content) == message["content"]
        assert tokens == message["usage"]["input_tokens"] + message["usage"]["output_tokens"]
    everything = "".join(row[1] for row in rows)
    assert all(awkward in everything for awkward in ("\u2028", "\u0085", "\x00", "<script>"))


def test_a_line_that_cannot_be_read_does_not_stand_in_for_a_request(
    emulator: Any, run_dag: Any, warehouse: Any
) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(3600)
    emulator.faults({"fault": "missing_lines", "count": 1}, {"fault": "garbage_lines", "count": 1})
    run = run_dag(load_dag(receipt))
    assert run.state == "failed"
    assert xcom(run, "load", key="claude_batch")["counts"] == {"succeeded": 2, "unreadable": 1, "missing": 1}


@pytest.mark.parametrize("operation", ["retrieve", "results"])
def test_a_404_of_a_moment_does_not_fail_the_load(operation: str, emulator: Any, run_dag: Any, warehouse: Any) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(3600)
    emulator.fault("not_found", operation=operation)
    assert run_dag(load_dag(receipt)).state == "success"


def test_results_that_are_past_their_29_days_are_a_final_error(
    emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    receipt = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.advance(30 * 86_400)
    assert run_dag(load_dag(receipt)).state == "failed"
    assert "the API keeps them for 29 days" in capfd.readouterr().out


def test_what_cannot_be_bettered_is_not_retried_and_says_so(
    emulator: Any, run_dag: Any, warehouse: Any, capfd: Any
) -> None:
    short = {**DEFAULTS, "max_tokens": 3}
    receipt = xcom(run_dag(submit_dag(requests=some_requests(), defaults=short)), "submit")
    emulator.advance(3600)
    loaded = xcom(run_dag(load_dag(receipt)), "load")
    assert set(loaded["truncated_ids"].values()) == {3}
    run = run_dag(submit_dag(requests=some_requests(), defaults=short, retry_of=loaded))
    assert states(run) == {"submit": "skipped"}
    assert "another try can better no answer" in capfd.readouterr().out
    run = run_dag(submit_dag(requests=some_requests(), retry_of=loaded))
    assert xcom(run, "submit")["requests"] == len(loaded["truncated_ids"])


def test_a_bare_id_is_read_back_though_its_first_line_is_garbage(
    batch_id: str, emulator: Any, run_dag: Any, warehouse: Any
) -> None:
    emulator.fault("garbage_lines", count=3)
    run_dag(load_dag(batch_id))
    found = warehouse.query("SELECT custom_id FROM answers WHERE custom_id IS NOT NULL ORDER BY 1")
    assert found == [("r-0",), ("r-1",), ("r-2",)]


def test_a_table_that_is_no_name_is_told_when_the_dag_is_parsed() -> None:
    with pytest.raises(Misconfigured, match="'my table' is not a table name"):
        load_dag("msgbatch_1", table="my table")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: load_dag("msgbatch_1", max_error_rate=5), "max_error_rate takes a share from 0 to 1"),
        (lambda: load_dag("msgbatch_1", max_error_rate="0.1"), "max_error_rate takes a share from 0 to 1"),
        (lambda: load_dag("msgbatch_1", table=None), "'' is not a table name"),
        (lambda: ClaudeBatchTotal(task_id="total", rounds=[], max_error_rate=-1), "max_error_rate takes a share"),
        (lambda: ClaudeBatchSensor(task_id="wait", batch="b", on_timeout="cancelled"), "takes 'fail' or 'cancel'"),
        (lambda: ClaudeBatchSensor(task_id="wait", batch="b", timeout=-5), "timeout takes a number that is not neg"),
        (lambda: submit(requests=[], shard_size=0), "shard_size takes a whole number from 1 on, and was given 0"),
        (lambda: submit(requests=[], max_requests=-1), "max_requests takes a number that is not negative"),
        (lambda: submit(requests=iter([])), "requests takes a list, the output of a task, a path"),
        (lambda: submit(requests={"custom_id": "a"}), "requests takes a list, the output of a task, a path"),
        (lambda: submit(requests=[], preflight=True), "preflight takes a whole number"),
        (lambda: submit(requests=[], preflight=None), "preflight takes a whole number"),
        (lambda: submit(requests=[], reuse_from=("warehouse", None)), "reuse_from takes a connection and a table"),
        (lambda: submit(requests=[], max_cost_usd="{{ params.budget }}"), "max_cost_usd takes a number"),
        (lambda: submit(requests=[], on_invalid="skipp"), "on_invalid takes 'fail' or 'skip', and was given 'skipp'"),
        (lambda: submit(requests=[], reuse_from="warehouse.answers"), "reuse_from takes a connection and a table"),
    ],
)
def test_a_slip_in_an_argument_is_told_when_the_dag_is_parsed(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        make()


def test_a_prompt_may_end_in_the_name_of_a_file(emulator: Any, run_dag: Any) -> None:
    system = "Explain what changed in schema.sql"
    run = run_dag(submit_dag(requests=some_requests(1), defaults={**DEFAULTS, "system": system}))
    (request,) = emulator.submitted(xcom(run, "submit")["batches"][0]["id"])
    assert request["params"]["system"] == system
