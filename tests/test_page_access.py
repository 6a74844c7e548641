"""Who sees what of the page, and what it lets nobody do."""

import json
from typing import Any

import pytest
from history import HOUR, History, submission
from page_client import NOW, PAGE, client, detail, listed, write

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application
NOT_FOUND = {"detail": "There is no such submission, or you may not read its Dag."}


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


def test_who_may_read_the_xcoms_of_one_dag_only_sees_only_what_that_one_says(limited: tuple[str, str]) -> None:
    history, receipts = History(), submission(3, NOW - 5 * HOUR)
    load = receipts.pop("load")
    run_id, _ = write(history, ("nightly", receipts), ("secret", {"load": load}))
    with client("half", "VIEWER") as half:
        shown = detail(half, load.submission, run_id)["submission"]
        assert (shown["state"], shown["rounds"][0]["errors"]) == ("ended", [])
        assert len(listed(half)["submissions"]) == 3


def test_nothing_on_the_page_can_be_changed(viewer: Any) -> None:
    from airflow_provider_claude_batch.page.app import build

    assert {method for route in build().routes for method in route.methods} <= {"GET", "HEAD"}
    for path in ("submissions", "submissions/sub_1", "charts", "page"):
        assert {viewer.request(method, f"{PAGE}/{path}").status_code for method in ("POST", "PUT", "DELETE")} == {405}


def test_every_answer_forbids_what_is_not_ours(viewer: Any) -> None:
    for path in ("page", "static/page.js", "static/page.css", "submissions", "static/nothing.js"):
        headers = viewer.get(f"{PAGE}/{path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["../app.py", "..%2Fapp.py", "%2e%2e/app.py", "nothing.js", ""])
def test_no_name_leads_out_of_the_folder_of_files(viewer: Any, name: str) -> None:
    assert "def build" not in viewer.get(f"{PAGE}/static/{name}").text
