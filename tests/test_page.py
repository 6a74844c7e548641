"""The page's server, in Airflow's own API application: lists, charts, and a submission's own page."""

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pytest
from airflow.sdk import DAG
from emulator import Emulator
from history import HOUR, History, fill, replace_receipt, submission
from loads import load_rows, row
from page_client import NOW, PAGE, client, detail, listed, names, write
from warehouse import connect_warehouse

from airflow_provider_claude_batch import claude_batch
from airflow_provider_claude_batch.page import beside
from airflow_provider_claude_batch.receipt import replace
from airflow_provider_claude_batch.row import PROBLEMS

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application
EMULATOR = ("--batch-seconds", "0")
STATIC = Path(__file__).parent.parent / "airflow_provider_claude_batch" / "page" / "static"


def test_airflow_lists_the_page_in_its_three_places(viewer: Any) -> None:
    with client("admin", "ADMIN") as admin:
        plugins = admin.get("/api/v2/plugins", params={"limit": 100}).json()["plugins"]
        assert admin.get("/api/v2/plugins/importErrors").json()["total_entries"] == 0
    (ours,) = (plugin for plugin in plugins if plugin["name"] == "claude_batch")
    assert [view["destination"] for view in ours["react_apps"]] == ["nav", "dag", "dag_run"]
    for view in ours["react_apps"]:
        assert viewer.get(view["bundle_url"]).headers["content-type"].startswith("text/javascript")


def test_every_outcome_of_a_row_has_its_place_and_its_color_on_the_page() -> None:
    script, style = ((STATIC / name).read_text() for name in ("parts.js", "page.css"))
    drawn = re.findall(r'"(\w+)"', script.split("OUTCOMES = [")[1].split("]")[0])
    statuses = {"succeeded", "errored", "expired", "canceled", "missing", "unreadable"}
    assert set(drawn) >= statuses | {*PROBLEMS.values(), "empty", "unknown_stop_reason", "invalid_output"}
    for outcome in drawn:
        assert len(re.findall(rf"--{outcome}: #", style)) == 2, outcome
        assert f".tone-{outcome} {{ --tone: var(--{outcome}); }}" in style


def test_all_files_that_the_page_names_are_there_and_no_other(viewer: Any) -> None:
    waiting, named = ["static/airflow.js", "page"], set()
    while waiting:
        path = waiting.pop()
        answer = viewer.get(f"{PAGE}/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].split(";")[0] in {"text/css", "text/html", "text/javascript"}
        found = re.findall(r'(?:from |import |href=|src=)"(?:\./|static/)([\w.]+)"', answer.text)
        waiting += {f"static/{name}" for name in found} - named
        named |= {path, *waiting}
    assert {f"static/{path.name}" for path in STATIC.iterdir()} == named - {"page"} | {"static/index.html"}


def test_the_newest_submission_comes_first_and_pages_follow(viewer: Any, history: History) -> None:
    ids = list(fill(30, dags=2))
    first, second = listed(viewer, limit=20), listed(viewer, limit=20, offset=20)
    assert [one["id"] for one in first["submissions"] + second["submissions"]] == sorted(ids, reverse=True)
    assert (first["total"], first["dags"], first["capped"]) == (30, ["nightly_00", "nightly_01"], False)
    assert (first["states"]["in_progress"], first["states"]["ended"], first["states"]["loaded"]) == (5, 1, 24)


def test_the_filters_narrow_the_list(viewer: Any, history: History) -> None:
    recent, old = submission(1, NOW - 2 * HOUR, steps=1), submission(2, NOW - timedelta(days=9))
    run_id, _ = write(history, ("nightly", recent), ("secret", old))
    new, past = recent["submit"].submission, old["submit"].submission
    assert names(viewer, dag_id="nightly") == [new]
    assert names(viewer, dag_id="nightly", run_id=run_id) == [new]
    assert names(viewer, dag_id="nightly", run_id="another") == []
    assert names(viewer, state="loaded") == [past]
    assert names(viewer, model="claude-haiku-4-5") == [past]
    assert names(viewer, since=(NOW - timedelta(days=1)).date()) == [new]
    assert names(viewer, until=(NOW - timedelta(days=3)).date()) == [past]
    assert viewer.get(f"{PAGE}/submissions", params={"state": "odd"}).status_code == 422


def test_a_total_is_not_counted_again(viewer: Any, history: History) -> None:
    from airflow_provider_claude_batch.receipt import replace

    receipts = submission(1, NOW - 5 * HOUR)
    write(history, ("nightly", {**receipts, "total": replace(receipts["load"], rounds=1)}))
    (only,) = listed(viewer)["submissions"]
    assert only["cost_usd"] == receipts["load"].cost_usd
    assert viewer.get(f"{PAGE}/charts").json()["totals"]["cost_usd"] == receipts["load"].cost_usd


def test_answers_without_a_price_are_counted(viewer: Any, history: History) -> None:
    from airflow_provider_claude_batch.receipt import replace

    receipts = submission(1, NOW - 5 * HOUR)
    write(history, ("nightly", {**receipts, "load": replace(receipts["load"], unpriced=7)}))
    assert listed(viewer)["submissions"][0]["unpriced"] == 7
    assert viewer.get(f"{PAGE}/charts").json()["totals"]["unpriced"] == 7


def test_the_charts_are_of_thirty_days_and_those_of_a_run_are_of_all_of_it(viewer: Any, history: History) -> None:
    (run_id,) = write(history, ("nightly", submission(1, NOW - timedelta(days=40))))
    whose = [{}, {"dag_id": "nightly"}, {"dag_id": "nightly", "run_id": run_id}, {"since": "2020-01-01"}]
    drawn = [viewer.get(f"{PAGE}/charts", params=query).json() for query in whose]
    assert [one["totals"]["submissions"] for one in drawn] == [0, 0, 1, 1]
    assert drawn[2]["since"] == str((NOW - timedelta(days=40)).date())


def test_a_submission_tells_its_story(viewer: Any, history: History) -> None:
    receipts = submission(1, NOW - 5 * HOUR)
    (run_id,) = write(history, ("nightly", receipts), at=NOW - 5 * HOUR)
    shown = detail(viewer, receipts["submit"].submission, run_id)["submission"]
    (only,) = shown["rounds"]
    moments = [only[name] for name in ("submitted_at", "ended_at", "noticed_at", "loaded_at")]
    assert [datetime.fromisoformat(one) for one in moments] == [NOW - n * HOUR for n in (5, 4, 4, 3)]
    assert [(one["step"], one["task_id"]) for one in only["tasks"]] == [(step, step) for step in receipts]
    assert only["errors"] == [{"error": "overloaded_error: Overloaded", "count": 1, "examples": []}]
    assert only["by_model"][0]["model"] == receipts["submit"].models[0]
    assert only["tables"] == [{"table": "answers", "warehouse_conn_id": "warehouse"}]
    assert only["batches"][0]["counts"]["succeeded"] == 99


def test_a_load_in_another_dag_belongs_to_its_submission(viewer: Any, history: History) -> None:
    receipts = submission(1, NOW - 5 * HOUR)
    load = receipts.pop("load")
    (run_id, _) = write(history, ("nightly", receipts), ("secret", {"load": load}))
    (only,) = listed(viewer)["submissions"]
    shown = detail(viewer, only["id"], run_id)["submission"]
    assert (only["dag_id"], only["state"], shown["state"], shown["cost_usd"]) == (
        "nightly",
        "loaded",
        "loaded",
        load.cost_usd,
    )


def test_a_submission_that_is_not_there_is_not_found(viewer: Any, history: History) -> None:
    (run_id,) = write(history, ("nightly", submission(1, NOW - 5 * HOUR)))
    for dag_id, name in (("nightly", "sub_nothing"), ("no_dag", "sub_nothing")):
        answer = viewer.get(f"{PAGE}/submissions/{name}", params={"dag_id": dag_id, "run_id": run_id})
        assert answer.status_code == 404


@pytest.mark.parametrize("day", ["0001-01-05", "1999-12-31", "3000-01-01"])
def test_days_that_no_calendar_of_ours_has_are_refused(viewer: Any, day: str) -> None:
    for path in ("charts", "submissions"):
        assert {viewer.get(f"{PAGE}/{path}", params={name: day}).status_code for name in ("since", "until")} == {422}


def test_old_answers_that_nobody_loaded_are_flagged_with_the_days_that_are_left(viewer: Any, history: History) -> None:
    write(history, ("nightly", submission(1, NOW - timedelta(days=9), steps=2)))
    shown = listed(viewer)
    (only,) = shown["submissions"]
    assert (shown["never_loaded"], only["overdue"], only["state"]) == (1, True, "ended")
    assert only["days_left"] == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("fan_out", [False, True])
def test_a_pipeline_on_the_page_is_as_in_its_table(
    history: History,
    emulator: Emulator,
    run_dag: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fan_out: bool,
) -> None:
    warehouse = connect_warehouse("sqlite", tmp_path, monkeypatch)
    with DAG("nightly", schedule=None) as dag:
        requests = [
            {"custom_id": f"t-{n}", "params": {"messages": [{"role": "user", "content": "Hi"}]}} for n in range(9)
        ]
        claude_batch(
            "labels",
            requests=[*requests, {"custom_id": "odd", "params": {}}],
            defaults={"model": "claude-haiku-4-5", "max_tokens": 64},
            warehouse_conn_id="warehouse",
            table="labels",
            shard_size=3,
            on_invalid="skip",
            fan_out=fan_out,
        )
    run = run_dag(dag)
    with client("viewer", "VIEWER") as viewer:
        (shown,) = listed(viewer)["submissions"]
        place = {"dag_id": "nightly", "run_id": run.run_id}
        rows = viewer.get(f"{PAGE}/submissions/{shown['id']}/rows", params={**place, "failed": False}).json()["rows"]
        failed = viewer.get(f"{PAGE}/submissions/{shown['id']}/rows", params=place).json()["rows"]
        charts = viewer.get(f"{PAGE}/charts").json()
    ((cost, live_cost),) = warehouse.query("SELECT sum(cost_usd), sum(live_cost_usd) FROM labels")
    assert (shown["state"], shown["shards"], shown["requests"]) == ("loaded", {"ended": 3, "total": 3}, 9)
    assert (shown["outcomes"], shown["skipped"]) == ({"succeeded": 9, "errored": 1}, 1)
    assert shown["cost_usd"] == pytest.approx(float(cost), abs=1e-6)
    assert charts["totals"]["live_cost_usd"] == pytest.approx(float(live_cost), abs=1e-6)
    assert [row["custom_id"] for row in rows] == ["odd", *(f"t-{n}" for n in range(9))]
    assert [row["custom_id"] for row in failed] == ["odd"]


@pytest.mark.parametrize("edited", [{"table": "salaries"}, {"warehouse_conn_id": "payroll"}])
def test_an_edited_receipt_opens_no_table_that_its_task_does_not_write(
    edited: dict[str, str], viewer: Any, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_warehouse("sqlite", tmp_path, monkeypatch)
    monkeypatch.setenv("AIRFLOW_CONN_PAYROLL", os.environ["AIRFLOW_CONN_WAREHOUSE"])
    receipts = submission(1, NOW - 5 * HOUR)
    for table in ("answers", "salaries"):
        load_rows(row(*receipts["load"].batch_ids), table=table)
    (run_id,) = write(history, ("nightly", receipts))
    path = f"{PAGE}/submissions/{receipts['submit'].submission}/rows"
    wanted = {"dag_id": "nightly", "run_id": run_id, "failed": False}
    assert len(viewer.get(path, params=wanted).json()["rows"]) == 1
    replace_receipt(run_id, "load", replace(receipts["load"], **edited), NOW - 2 * HOUR)
    answer = viewer.get(path, params=wanted).json()
    assert answer["rows"] == []
    assert next(iter(edited.values())) in answer["problem"]


def test_a_warehouse_that_hangs_holds_up_only_who_asks_it(
    viewer: Any, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_claude_batch.page import app

    monkeypatch.setattr(app, "_PATIENCE", 0.1)
    receipts = submission(1, NOW - 5 * HOUR)
    (run_id,) = write(history, ("nightly", receipts))
    path = f"{PAGE}/submissions/{receipts['submit'].submission}/rows"
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        place = {"host": "127.0.0.1", "port": silent.getsockname()[1], "schema": "x"}
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "postgres", **place}))
        for _ in range(50):
            answer = viewer.get(path, params={"dag_id": "nightly", "run_id": run_id})
            assert answer.json() == {"rows": [], "problem": "The warehouse has not answered in time: ask again later."}
        assert listed(viewer)["total"] == 1


def test_a_job_that_hangs_for_long_is_not_in_the_way_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_STUCK", -1.0)
    jobs, released = beside.Beside(2), Event()
    begun = [Event() for _ in range(5)]

    def hang(nth: int) -> None:
        begun[nth].set()
        released.wait(60)

    for nth, one in enumerate(begun):
        jobs.run(partial(hang, nth))
        assert one.wait(60)
    assert jobs.run(lambda: None).wait(60)
    released.set()


def test_no_more_threads_hang_than_a_server_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_STUCK", -1.0)
    monkeypatch.setattr(beside, "_MOST", 3)
    jobs, released, begun = beside.Beside(1), Event(), Semaphore(0)

    def hang() -> None:
        begun.release()
        released.wait(60)

    for _ in range(3):
        jobs.run(hang)
        assert begun.acquire(timeout=60)
    later = jobs.run(lambda: None)
    assert not later.is_set()
    assert len([one for one in jobs._begun if one.is_alive()]) == 3
    released.set()
    assert later.wait(60)
