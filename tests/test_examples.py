"""The example Dags on real Airflow: on good nights and on bad ones, and where there is nothing to do."""

import ast
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pendulum
import pytest
from runs import states, xcom
from warehouse import connect_warehouse

import airflow_provider_claude_batch

ROOT = Path(__file__).parent.parent
PIPELINES = (ROOT / "docs" / "pipelines.md").read_text()
FILES = sorted((ROOT / "example_dags").glob("*.py"))
EMULATOR = ("--batch-seconds", "0")
HEAVY = {"anthropic", "duckdb", "pandas", "pyarrow"}
MONDAY = pendulum.datetime(2026, 1, 5)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


def names(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FILES[0].with_name(f"{name}.py")))


def example(name: str) -> Any:
    return names(name)[name]()


def sent(emulator: Any) -> list[list[dict[str, Any]]]:
    """Return the requests of each batch that the API took, their ids without the mark."""
    batches = [emulator.submitted(call["batch_id"]) for call in emulator.journal(operation="create")]
    return [[{**one, "custom_id": one["custom_id"][:-16]} for one in batch] for batch in batches]


def in_group(run: Any, group: str, state: str) -> set[str]:
    """Name the tasks of a group that ended in a state."""
    return {name.removeprefix(f"{group}.") for name, one in states(run).items() if name != one == state}


def test_examples_are_short_and_use_public_names_only() -> None:
    assert len(FILES) == 6
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) < 60, path.name
        imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        ours = {name.name for node in imported if node.module == "airflow_provider_claude_batch" for name in node.names}
        assert ours
        assert ours <= set(airflow_provider_claude_batch.__all__)
        assert not [node for node in imported if (node.module or "").startswith("airflow_provider_claude_batch.")]


def test_examples_parse_quickly_and_import_nothing_heavy() -> None:
    script = """if True:
        import json, runpy, sys, time
        from airflow.sdk import dag
        import airflow.timetables.interval, pydantic
        seconds = {}
        for path in sys.argv[1:]:
            began = time.process_time()
            runpy.run_path(path)
            seconds[path] = time.process_time() - began
        print(json.dumps([seconds, [*sys.modules]]))
    """
    run = subprocess.run([sys.executable, "-c", script, *FILES], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stdout.splitlines()[-1])
    assert not HEAVY & set(modules)
    assert max(seconds.values()) < 0.5, seconds


def test_tickets_get_typed_columns_without_holding_a_worker(
    emulator: Any, run_dag: Any, answers: Any, capfd: Any
) -> None:
    emulator.fault("slow_batch", seconds=4)
    with emulator.advancing(4, after="retrieve"):
        run = run_dag(example("ticket_labels"))
    rounds = {f"labels.{name}_{n}" for name in ("submit", "wait", "load") for n in (2, 3)}
    assert {name for name, state in states(run).items() if state == "skipped"} == rounds
    assert {name for name, state in states(run).items() if state == "success"} == {
        *("build_requests", "publish"),
        *(f"labels.{name}" for name in ("submit", "wait", "load", "total")),
    }
    assert [len(batch) for batch in sent(emulator)] == [150, 50]
    rows = answers.query("SELECT custom_id, label, urgency, wants_refund, summary, problem FROM ticket_labels_latest")
    ids = {row[0] for row in rows}
    assert len(ids) == 200 > len({one.rsplit("-", 1)[0] for one in ids})
    assert {row[1] for row in rows} == {"billing", "technical", "account", "other"}
    assert {row[2] for row in rows} == {1, 2, 3, 4, 5}
    assert {type(row[3]) for row in rows} == {bool}
    assert all(row[4] and row[5] is None for row in rows)
    assert answers.types("ticket_labels")["urgency"] == "BIGINT"
    assert xcom(run, "publish") == Counter(row[1] for row in rows if row[2] >= 4)
    output = capfd.readouterr().out
    assert "DEFERRED" in output
    assert "¡Buenas!" not in output
    assert "emulator-key" not in output


def test_tickets_that_fail_are_sent_again_with_room_for_longer_answers(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="-000[0-4]", times=5)
    emulator.fault("row", outcome="expired", match="-001[0-2]", times=3)
    emulator.fault("row", outcome="truncated", match="-002[01]", times=2)
    emulator.fault("row", outcome="unfit", match="-0030", times=2)
    emulator.fault("row", outcome="invalid_request_error", match="-0040", times=-1)
    run = run_dag(example("ticket_labels"))
    assert run.state == "success"
    assert states(run)["labels.load_3"] == states(run)["publish"] == "success"
    batches = sent(emulator)
    assert [len(batch) for batch in batches] == [150, 50, 11, 1]
    assert [{one["params"]["max_tokens"] for one in batch} for batch in batches] == [{300}, {300}, {1_000}, {1_000}]
    latest = "SELECT attempt, status, problem, count(*) FROM ticket_labels_latest GROUP BY ALL ORDER BY ALL"
    assert answers.query(latest) == [
        (1, "errored", None, 1),
        (1, "succeeded", None, 188),
        (2, "succeeded", None, 10),
        (3, "succeeded", None, 1),
    ]
    ((failed, error),) = answers.query("SELECT custom_id, error_type FROM ticket_labels_errors")
    assert (failed[-5:], error) == ("-0040", "invalid_request_error")
    assert xcom(run, "labels.total")["counts"] == {"succeeded": 199, "errored": 1}


def test_the_leads_of_an_hour_are_scored_where_they_are(emulator: Any, run_dag: Any, answers: Any) -> None:
    assert run_dag(example("lead_scores"), logical_date=MONDAY.add(hours=9)).state == "success"
    scored = answers.query("SELECT lead_id, score, stage FROM leads ORDER BY lead_id")
    assert len(scored) >= 5
    assert scored == answers.query("SELECT custom_id, score, stage FROM lead_scores_current ORDER BY custom_id")
    assert all(row[0].startswith("lead-26010508-") and 0 <= row[1] <= 100 for row in scored)

    emulator.fault("row", outcome="expired", match="lead-26010509-0", times=1)
    emulator.fault("row", outcome="invalid_request_error", match="lead-26010509-1", times=-1)
    run = run_dag(example("lead_scores"), logical_date=MONDAY.add(hours=10))
    assert run.state == "success"
    assert xcom(run, "scores.total")["rounds"] == 2
    assert [len(batch) for batch in sent(emulator)] == [len(scored), len(scored), 1]
    assert answers.query("SELECT lead_id FROM leads WHERE score IS NULL OR stage IS NULL") == [("lead-26010509-1",)]
    assert answers.query("SELECT count(*) FROM leads") == [(2 * len(scored),)]


def test_an_hour_without_leads_is_skipped_and_no_failure(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(example("lead_scores"), logical_date=MONDAY.add(hours=3))
    assert run.state == "success"
    assert {name for name, state in states(run).items() if state != "skipped"} == {"receive_leads"}
    assert emulator.journal(operation="create") == []


def test_digests_read_the_guide_from_the_cache(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(example("email_digests"))
    assert run.state == "success"
    first, others = sent(emulator)
    assert (len(first), len(others)) == (1, 39)
    assert {one["params"]["system"][-1]["cache_control"]["ttl"] for one in [*first, *others]} == {"1h"}
    total = xcom(run, "digests.total")
    guide = total["usage"]["cache_write_1h_tokens"]
    assert guide > 1_024
    assert total["usage"]["cache_read_tokens"] == 39 * guide
    assert total["cache_hit_rate"] > 0.9
    assert xcom(run, "send") == 40
    texts = [row[0] for row in answers.query("SELECT text FROM email_digests_latest")]
    assert len(texts) == 40
    assert all(texts)
    assert any("{{ no_" in one["params"]["messages"][0]["content"] for one in others)


def test_digests_that_are_cut_off_are_not_sent_to_customers(emulator: Any, run_dag: Any, answers: Any) -> None:
    emulator.fault("row", outcome="truncated", match="customer-00007", times=1)
    emulator.fault("row", outcome="overloaded_error", match="customer-0001[0-9]", times=10)
    emulator.fault("row", outcome="expired", match="customer-0001[0-9]", times=2)
    run = run_dag(example("email_digests"))
    assert run.state == "success"
    assert [len(batch) for batch in sent(emulator)] == [1, 39, 10, 2]
    assert xcom(run, "send") == 39
    left = answers.query("SELECT custom_id, status, problem FROM email_digests_errors")
    assert left == [("customer-00007", "succeeded", "truncated")]


def test_reviews_go_to_several_models_in_one_batch(emulator: Any, run_dag: Any, answers: Any) -> None:
    run = run_dag(example("code_reviews"))
    assert run.state == "success"
    batches = sent(emulator)
    assert [len(batch) for batch in batches] == [10, 10, 10]
    for batch in batches:
        models = {one["params"]["model"]: one["params"]["system"] for one in batch}
        assert set(models) == {"claude-opus-4-7", "claude-sonnet-4-6"}
        assert len(set(models.values())) == 2
        assert {one["params"]["max_tokens"] for one in batch} == {300_000}
    assert Counter(ti.task_id for ti in run.get_task_instances())["reviews.load"] == 3
    total = xcom(run, "reviews.total")
    assert total["counts"] == {"succeeded": 30}
    assert 50 < total["estimate_usd"] < 100
    assert xcom(run, "post_reviews") == 30
    assert answers.query("SELECT count(*) FROM code_reviews WHERE model = 'claude-opus-4-7' AND text <> ''") > [(0,)]
    assert any("{{ .Values.image }}" in one["params"]["messages"][0]["content"] for one in batches[0])


def test_reviews_this_long_need_the_beta_header(emulator: Any, run_dag: Any, answers: Any) -> None:
    reviews = example("code_reviews")
    for name in ("reviews.submit", "reviews.submit_2", "reviews.submit_3"):
        reviews.get_task(name).defaults.pop("betas", None)
    assert states(run_dag(reviews))["reviews.total"] == "failed"
    ((message,),) = answers.query("SELECT DISTINCT error_message FROM code_reviews WHERE model IS NULL LIMIT 1")
    assert "maximum allowed number of output tokens" in message


def test_reviews_with_too_many_errors_end_in_a_failure_after_all_is_saved(
    emulator: Any, run_dag: Any, answers: Any
) -> None:
    emulator.fault("row", outcome="overloaded_error", match="-410[0-9]", times=10)
    emulator.fault("row", outcome="invalid_request_error", match="-4120", times=-1)
    run = run_dag(example("code_reviews"))
    assert run.state == "failed"
    assert (states(run)["reviews.total"], states(run)["post_reviews"]) == ("failed", "upstream_failed")
    statuses = dict(answers.query("SELECT status, count(*) FROM code_reviews_latest GROUP BY status"))
    assert statuses == {"succeeded": 29, "errored": 1}
    ((error, message),) = answers.query("SELECT error_type, error_message FROM code_reviews_errors")
    assert error == "invalid_request_error"
    assert message


def test_a_night_pays_only_for_products_that_are_new_or_changed(emulator: Any, run_dag: Any, answers: Any) -> None:
    catalogue, dag = names("incremental_enrichment")["catalogue"], example("incremental_enrichment")
    monday, tuesday = catalogue(MONDAY.date()), catalogue(MONDAY.add(days=1).date())
    emulator.fault("row", outcome="overloaded_error", match="sku-1[0-2]", times=3)
    emulator.fault("row", outcome="invalid_request_error", match="sku-29", times=1)
    assert run_dag(dag, logical_date=MONDAY).state == "success"
    first, again = sent(emulator)
    assert {one["custom_id"] for one in first} == set(monday)
    assert len(again) == 3

    run = run_dag(dag, logical_date=MONDAY.add(days=1))
    changed = {sku for sku, text in tuesday.items() if monday.get(sku) != text}
    assert 0 < len(changed) < 6
    assert {one["custom_id"] for one in sent(emulator)[-1]} == {*changed, "sku-29"}
    published = xcom(run, "publish")
    assert published.pop("asked anew") == len(changed) + 1
    assert published.pop("taken as they were") == len(tuesday) - len(changed) - 1
    assert sum(published.values()) == len(tuesday)
    assert answers.query("SELECT count(*) FROM products_current WHERE teaser IS NOT NULL") == [(len(tuesday),)]


def test_a_night_without_changes_submits_nothing_and_publishes(emulator: Any, run_dag: Any, answers: Any) -> None:
    dag = example("incremental_enrichment")
    run_dag(dag, logical_date=MONDAY)
    run = run_dag(dag, logical_date=MONDAY.add(hours=1))
    assert run.state == "success"
    assert len(emulator.journal(operation="create")) == 1
    assert xcom(run, "publish")["asked anew"] == 0
    assert xcom(run, "publish")["taken as they were"] == len(sent(emulator)[0])


@pytest.fixture
def content_db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's own database."""
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "content.sqlite")}
    monkeypatch.setenv("AIRFLOW_CONN_CONTENT_DB", json.dumps(connection))


def test_briefs_are_sorted_and_the_good_ones_written(
    emulator: Any, run_dag: Any, answers: Any, content_db: None
) -> None:
    queue = names("article_drafts")["QUEUE"]
    queue.put("brief-extra", {"messages": [{"role": "user", "content": "Why do {{ bees }} dance?"}]})
    run = run_dag(example("article_drafts"))
    assert run.state == "success"
    triage, prime, drafts = sent(emulator)
    assert len(triage) == 21
    assert {one["params"]["model"] for one in triage} == {"claude-haiku-4-5"}
    passed = {row[0] for row in answers.query("SELECT custom_id FROM triage_latest WHERE is_worth_writing")}
    assert 0 < len(passed) < 21
    assert {one["custom_id"] for one in [*prime, *drafts]} == passed
    assert {one["params"]["model"] for one in [*prime, *drafts]} == {"claude-sonnet-4-6"}
    assert xcom(run, "drafts.total")["usage"]["cache_read_tokens"] > 1_024 * len(drafts)
    assert sorted(xcom(run, "hand_over")) == sorted(passed)
    assert queue.waiting() == 0
    assert {item.state for item in queue.find("brief-extra")} == {"submitted"}


def test_drafts_are_retried_until_all_are_done(emulator: Any, run_dag: Any, answers: Any, content_db: None) -> None:
    emulator.fault("row", outcome="overloaded_error", match="brief-1", times=40)
    run = run_dag(example("article_drafts"))
    assert run.state == "success"
    for group in ("triage", "drafts"):
        total = xcom(run, f"{group}.total")
        assert set(total["counts"]) == {"succeeded"}
        assert total["retryable"] == 0
    assert xcom(run, "triage.total")["rounds"] > 3
    assert answers.query("SELECT count(*) FROM drafts_errors UNION ALL SELECT count(*) FROM triage_errors") == [
        (0,),
        (0,),
    ]


@pytest.mark.parametrize(
    ("name", "table", "rows"),
    [("summaries", "memo_summaries", 2), ("by_region", "greetings", 2), ("translations", "translations", 3)],
)
def test_what_the_guide_prints_runs_as_printed(
    name: str, table: str, rows: int, emulator: Any, run_dag: Any, answers: Any, tmp_path: Path
) -> None:
    (code,) = [
        one
        for one in re.findall(r"^```python\n(.*?)^```", PIPELINES, re.MULTILINE | re.DOTALL)
        if f"def {name}(" in one
    ]
    (tmp_path / f"{name}.py").write_text(code)
    run = run_dag(runpy.run_path(str(tmp_path / f"{name}.py"))[name]())
    assert run.state == "success"
    assert answers.query(f"SELECT count(*) FROM {table}_latest WHERE status = 'succeeded'") == [(rows,)]


def test_the_guide_has_a_section_for_each_example() -> None:
    assert set(re.findall(r"^## \[(.+?)\]\(\.\./example_dags/\1\)$", PIPELINES, re.MULTILINE)) == {
        path.name for path in FILES
    }
