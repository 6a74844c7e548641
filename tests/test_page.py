"""The page's server, in Airflow's own API application: who sees what, and what of it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from emulator import CONNECTION, Emulator
from history import HOUR, History, fill, submission
from page_client import Counted, client

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application
EMULATOR = ("--batch-seconds", "3600")
NOW = datetime.now(UTC).replace(microsecond=0)
PAGE = "/claude-batch"
NOT_FOUND = {"detail": "There is no such submission, or you may not read its Dag."}


@pytest.fixture(scope="module", autouse=True)
def secret() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
        yield


@pytest.fixture
def history(airflow_db: None) -> Iterator[History]:
    """Airflow's database, without what other tests have left in it."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    def empty() -> None:
        with create_session() as session:
            session.query(DagRun).delete()
            session.query(DagModel).delete()

    empty()
    history = History()
    history.add_dags("nightly", "secret")
    yield history
    empty()


@pytest.fixture
def http(history: History) -> Iterator[Any]:
    """Somebody who may read all Dags."""
    with client("viewer", "VIEWER") as http:
        yield http


def listed(http: Any, **query: Any) -> dict[str, Any]:
    answer = http.get(f"{PAGE}/submissions", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(http: Any, **query: Any) -> list[str]:
    return [one["id"] for one in listed(http, **query)["submissions"]]


def write(history: History, *runs: tuple[str, dict[str, Any]], at: datetime = NOW - 3 * HOUR) -> list[str]:
    run_ids = [history.add_run(dag_id, at, receipts) for dag_id, receipts in runs]
    history.write()
    return run_ids


def test_who_is_not_logged_in_gets_no_data(history: History) -> None:
    with client(None) as nobody:
        paths = ["submissions", "submissions/sub_1?dag_id=nightly&run_id=r", "submissions/sub_1/rows?dag_id=d&run_id=r"]
        assert {nobody.get(f"{PAGE}/{path}").status_code for path in [*paths, "charts"]} == {401}
        assert nobody.get(f"{PAGE}/page").status_code == 200


@pytest.fixture
def limited(history: History, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An Airflow in which not everybody may read everything, and a run in a Dag that is not public."""
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "limited_auth.LimitedAuthManager")
    history.add_dags("public_one")
    write(history, ("public_one", submission(1, NOW - 9 * HOUR)))
    hidden = submission(2, NOW - 2 * HOUR)
    (run_id,) = write(history, ("secret", hidden))
    return hidden["submit"].submission, run_id


def test_who_may_not_read_a_dag_does_not_learn_that_it_has_submissions(limited: tuple[str, str]) -> None:
    name, run_id = limited
    place = {"dag_id": "secret", "run_id": run_id}
    with client("guest", "VIEWER") as guest:
        shown = listed(guest)
        assert [one["dag_id"] for one in shown["submissions"]] == ["public_one"]
        assert (shown["total"], shown["dags"], shown["models"]) == (1, ["public_one"], ["claude-sonnet-4-6"])
        assert listed(guest, dag_id="secret")["submissions"] == []
        charts = guest.get(f"{PAGE}/charts").json()
        assert (charts["totals"]["submissions"], {one["model"] for one in charts["spend"]}) == (
            1,
            {"claude-sonnet-4-6"},
        )
        for path in (name, f"{name}/rows", "sub_nothing", "sub_nothing/rows"):
            answer = guest.get(f"{PAGE}/submissions/{path}", params=place)
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


def test_a_submission_of_another_dag_does_not_come_out_through_ones_own(limited: tuple[str, str]) -> None:
    name, run_id = limited
    with client("guest", "VIEWER") as guest:
        answer = guest.get(f"{PAGE}/submissions/{name}", params={"dag_id": "public_one", "run_id": run_id})
        assert answer.status_code == 404


def test_who_may_not_read_xcoms_sees_figures_and_no_texts(limited: tuple[str, str]) -> None:
    name, run_id = limited
    with client("reader", "VIEWER") as reader:
        shown = listed(reader)
        assert shown["total"] == 2
        assert "Overloaded" not in json.dumps(shown)
        assert "ticket-" not in json.dumps(shown)
        for path in (name, f"{name}/rows"):
            answer = reader.get(f"{PAGE}/submissions/{path}", params={"dag_id": "secret", "run_id": run_id})
            assert answer.status_code == 403


def test_airflow_lists_the_page_in_its_three_places(http: Any) -> None:
    with client("admin", "ADMIN") as admin:
        plugins = admin.get("/api/v2/plugins", params={"limit": 100}).json()["plugins"]
        assert admin.get("/api/v2/plugins/importErrors").json()["total_entries"] == 0
    (ours,) = (plugin for plugin in plugins if plugin["name"] == "claude_batch")
    assert [view["destination"] for view in ours["react_apps"]] == ["nav", "dag", "dag_run"]
    for view in ours["react_apps"]:
        assert http.get(view["bundle_url"]).headers["content-type"].startswith("text/javascript")


def test_nothing_on_the_page_can_be_changed(http: Any) -> None:
    from airflow_provider_claude_batch.page.app import build

    assert {method for route in build().routes for method in route.methods} <= {"GET", "HEAD"}
    for path in ("submissions", "submissions/sub_1", "charts", "page"):
        assert {http.request(method, f"{PAGE}/{path}").status_code for method in ("POST", "PUT", "DELETE")} == {405}


def test_every_answer_forbids_what_is_not_ours(http: Any) -> None:
    for path in ("page", "static/page.js", "static/page.css", "submissions", "static/nothing.js"):
        headers = http.get(f"{PAGE}/{path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["../app.py", "..%2Fapp.py", "%2e%2e/app.py", "nothing.js", ""])
def test_no_name_leads_out_of_the_folder_of_files(http: Any, name: str) -> None:
    assert "def build" not in http.get(f"{PAGE}/static/{name}").text


def test_all_files_that_the_page_names_are_there(http: Any) -> None:
    folder = Path(__file__).parent.parent / "airflow_provider_claude_batch" / "page" / "static"
    for path in folder.iterdir():
        answer = http.get(f"{PAGE}/static/{path.name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in {"text/css", "text/html", "text/javascript"}
        assert "//cdn" not in answer.text


def test_the_newest_submission_comes_first_and_pages_follow(http: Any, history: History) -> None:
    ids = list(fill(30, dags=2))
    first, second = listed(http, limit=20), listed(http, limit=20, offset=20)
    assert [one["id"] for one in first["submissions"] + second["submissions"]] == sorted(ids, reverse=True)
    assert (first["total"], first["dags"], first["capped"]) == (30, ["nightly_00", "nightly_01"], False)
    assert (first["states"]["in_progress"], first["states"]["ended"], first["states"]["loaded"]) == (5, 1, 24)


def test_the_filters_narrow_the_list(http: Any, history: History) -> None:
    recent, old = submission(1, NOW - 2 * HOUR, steps=1), submission(2, NOW - timedelta(days=9))
    run_id, _ = write(history, ("nightly", recent), ("secret", old))
    new, past = recent["submit"].submission, old["submit"].submission
    assert names(http, dag_id="nightly") == [new]
    assert names(http, dag_id="nightly", run_id=run_id) == [new]
    assert names(http, dag_id="nightly", run_id="another") == []
    assert names(http, state="loaded") == [past]
    assert names(http, model="claude-haiku-4-5") == [past]
    assert names(http, since=(NOW - timedelta(days=1)).date()) == [new]
    assert names(http, until=(NOW - timedelta(days=1)).date()) == [past]
    assert http.get(f"{PAGE}/submissions", params={"state": "odd"}).status_code == 422


def test_what_comes_and_goes_in_airflow_comes_and_goes_on_the_page(http: Any, history: History) -> None:
    receipts = submission(1, NOW - 2 * HOUR)
    (run_id,) = write(history, ("nightly", {"submit": receipts["submit"]}))
    assert listed(http)["submissions"][0]["state"] == "in_progress"
    write(history, ("secret", submission(2, NOW - HOUR)))
    assert len(names(http)) == 2
    forget(run_id)
    assert names(http) == [submission(2, NOW - HOUR)["submit"].submission]


def forget(run_id: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(DagRun).filter(DagRun.run_id == run_id).delete()


def test_the_number_of_queries_does_not_grow(http: Any, history: History) -> None:
    asked = []
    for count in (20, 400):
        list(fill(count))
        listed(http)
        with Counted() as counted:
            for path in ("submissions", "submissions?offset=15&state=loaded", "charts"):
                assert http.get(f"{PAGE}/{path}").status_code == 200
                asked.append(counted.take())
    assert asked[:3] == asked[3:]
    assert max(asked) <= 4


ODD = [{"v": 2, "submission": "x"}, {"v": 1}, [1, 2], "text", 7, None, {"v": 1, "submission": 5}, "{", "[[["]
TIMELESS = [
    {"v": 1, "submission": "sub_1", "submitted_at": "2026-11-20T00:00:00"},
    {"v": 1, "submission": "sub_1", "submitted_at": "9999-12-31T23:59:59Z"},
    {"v": 1, "submission": "sub_1", "batches": [{"id": "b", "created_at": "0001-01-01T00:00:00Z"}]},
]


@pytest.mark.parametrize("value", [*ODD, *TIMELESS])
def test_what_others_push_under_our_key_is_passed_over(http: Any, history: History, value: Any) -> None:
    good = submission(1, NOW - 2 * HOUR)
    write(history, ("nightly", good), ("nightly", {"other": value}))
    assert names(http) == [good["submit"].submission]
    assert http.get(f"{PAGE}/charts").json()["totals"]["submissions"] == 1


def test_a_total_is_not_counted_again(http: Any, history: History) -> None:
    from airflow_provider_claude_batch.receipt import replace

    receipts = submission(1, NOW - 5 * HOUR)
    write(history, ("nightly", {**receipts, "total": replace(receipts["load"], rounds=1)}))
    (only,) = listed(http)["submissions"]
    assert only["cost_usd"] == receipts["load"].cost_usd
    assert http.get(f"{PAGE}/charts").json()["totals"]["cost_usd"] == receipts["load"].cost_usd


def test_the_charts_are_of_thirty_days_and_those_of_a_run_are_of_all_of_it(http: Any, history: History) -> None:
    (run_id,) = write(history, ("nightly", submission(1, NOW - timedelta(days=40))))
    whose = [{}, {"dag_id": "nightly"}, {"dag_id": "nightly", "run_id": run_id}, {"since": "2020-01-01"}]
    drawn = [http.get(f"{PAGE}/charts", params=query).json() for query in whose]
    assert [one["totals"]["submissions"] for one in drawn] == [0, 0, 1, 1]
    assert drawn[2]["since"] == str((NOW - timedelta(days=40)).date())


def test_a_submission_tells_its_story(http: Any, history: History) -> None:
    receipts = submission(1, NOW - 5 * HOUR)
    (run_id,) = write(history, ("nightly", receipts), at=NOW - 5 * HOUR)
    shown = detail(http, receipts["submit"].submission, run_id)["submission"]
    (only,) = shown["rounds"]
    moments = [only[name] for name in ("submitted_at", "ended_at", "noticed_at", "loaded_at")]
    assert [datetime.fromisoformat(one) for one in moments] == [NOW - n * HOUR for n in (5, 4, 4, 3)]
    assert [(one["step"], one["task_id"]) for one in only["tasks"]] == [(step, step) for step in receipts]
    assert only["errors"] == [{"error": "overloaded_error: Overloaded", "count": 1, "examples": []}]
    assert only["by_model"][0]["model"] == receipts["submit"].models[0]
    assert only["tables"] == [{"table": "answers", "warehouse_conn_id": "warehouse"}]
    assert only["batches"][0]["counts"]["succeeded"] == 99


def detail(http: Any, name: str, run_id: str, dag_id: str = "nightly", **query: Any) -> dict[str, Any]:
    answer = http.get(f"{PAGE}/submissions/{name}", params={"dag_id": dag_id, "run_id": run_id, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_load_in_another_dag_belongs_to_its_submission(http: Any, history: History) -> None:
    receipts = submission(1, NOW - 5 * HOUR)
    load = receipts.pop("load")
    (run_id, _) = write(history, ("nightly", receipts), ("secret", {"load": load}))
    (only,) = listed(http)["submissions"]
    shown = detail(http, only["id"], run_id)["submission"]
    assert (only["dag_id"], only["state"], shown["state"], shown["cost_usd"]) == (
        "nightly",
        "loaded",
        "loaded",
        load.cost_usd,
    )


def test_a_submission_that_is_not_there_is_not_found(http: Any, history: History) -> None:
    (run_id,) = write(history, ("nightly", submission(1, NOW - 5 * HOUR)))
    for dag_id, name in (("nightly", "sub_nothing"), ("no_dag", "sub_nothing")):
        answer = http.get(f"{PAGE}/submissions/{name}", params={"dag_id": dag_id, "run_id": run_id})
        assert answer.status_code == 404


def test_batches_that_run_are_asked_for_live_and_not_too_often(
    http: Any, history: History, emulator: Emulator, sdk: Any
) -> None:
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    key = {"x-api-key": CONNECTION["password"]}
    batch = sdk.messages.batches.create(requests=[{"custom_id": "one", "params": params}], extra_headers=key)
    receipts = running(batch.id)
    (run_id,) = write(history, ("nightly", receipts))
    calls = len(emulator.journal())
    assert listed(http, live=True)["submissions"][0]["outcomes"] == {"processing": 1}
    for _ in range(3):
        assert listed(http, live=True)["live"]["problems"] == []
    assert len(emulator.journal()) == calls + 1
    assert detail(http, receipts["submit"].submission, run_id, live=True)["submission"]["state"] == "in_progress"


def running(batch_id: str) -> dict[str, Any]:
    from airflow_provider_claude_batch.receipt import Part, replace

    receipt = submission(1, NOW - HOUR, steps=1, requests=1)["submit"]
    return {"submit": replace(receipt, batches=(Part(batch_id, 1),))}


def test_the_end_is_shown_while_airflow_still_waits(
    http: Any, history: History, emulator: Emulator, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_claude_batch.page import live

    monkeypatch.setattr(live, "_FRESH", 0.0)
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    key = {"x-api-key": CONNECTION["password"]}
    batch = sdk.messages.batches.create(requests=[{"custom_id": "one", "params": params}], extra_headers=key)
    write(history, ("nightly", running(batch.id)))
    assert listed(http, live=True)["submissions"][0]["state"] == "in_progress"
    emulator.advance(3600)
    (only,) = listed(http, live=True)["submissions"]
    assert (only["state"], only["outcomes"], only["shards"]) == ("ended", {"succeeded": 1}, {"ended": 1, "total": 1})
    assert names(http, state="ended") == [only["id"]]


def test_a_connection_that_cannot_be_asked_is_named_and_nothing_else_fails(
    http: Any, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", raising=False)
    write(history, ("nightly", running("msgbatch_1")))
    shown = listed(http, live=True)
    assert "anthropic_default" in shown["live"]["problems"][0]
    assert shown["submissions"][0]["state"] == "in_progress"


def test_old_answers_that_nobody_loaded_are_flagged_with_the_days_that_are_left(http: Any, history: History) -> None:
    write(history, ("nightly", submission(1, NOW - timedelta(days=9), steps=2)))
    shown = listed(http)
    (only,) = shown["submissions"]
    assert (shown["never_loaded"], only["overdue"], only["state"]) == (1, True, "ended")
    assert only["days_left"] == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("threshold", ["0", "300"])
def test_receipts_that_a_backend_keeps_elsewhere_are_read_there(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: str
) -> None:
    from airflow.providers.common.io.xcom import backend
    from airflow.sdk.execution_time import xcom

    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH", f"file://{tmp_path}")
    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD", threshold)
    monkeypatch.setattr(xcom, "XCom", backend.XComObjectStorageBackend)
    for cached in (backend._get_base_path, backend._get_compression, backend._get_threshold):
        cached.cache_clear()
    receipts = submission(1, NOW - 5 * HOUR)
    stored = {step: kept_elsewhere(backend, step, receipt) for step, receipt in receipts.items()}
    assert all(isinstance(value, str) for value in stored.values())
    (run_id,) = write(history, ("nightly", stored))
    with client("viewer", "VIEWER") as http:
        assert listed(http)["submissions"][0]["state"] == "loaded"
        assert detail(http, receipts["submit"].submission, run_id)["submission"]["rounds"][0]["errors"] != []
        for path in tmp_path.rglob("*.json"):
            path.unlink()
        assert listed(http)["total"] == 1
        write(history, ("nightly", {"submit": "s3://nowhere/at/all.json"}))
        assert listed(http)["total"] == 1


def kept_elsewhere(backend: Any, step: str, receipt: Any) -> Any:
    place = {"key": "claude_batch", "task_id": step, "dag_id": "nightly", "run_id": "r", "map_index": -1}
    stored = backend.XComObjectStorageBackend.serialize_value(receipt.to_dict(), **place)
    return json.loads(stored) if stored.startswith('"') else stored
