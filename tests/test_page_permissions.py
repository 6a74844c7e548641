"""Who may see what on the page, as Airflow's auth manager decides it: in the browser, and past it."""

import re
from collections.abc import Callable

import pytest
from browser import Window, values
from playwright.sync_api import expect
from showcase import Showcase

pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]
NOTHING = "There is no such submission, or you may not read its Dag."


def test_a_guest_sees_the_dags_that_he_may_read(visit: Callable[..., Window], showcase: Showcase) -> None:
    window = visit("guest")
    frame = window.open()
    assert window.dags == ["public_digests", "public_digests"]
    assert values(frame.locator("[data-filter=dag_id] option"), "value") == ["", "public_digests"]
    assert values(frame.locator("[data-filter=model] option"), "value") == ["", "claude-haiku-4-5"]
    ((cost,),) = showcase.query("SELECT sum(cost_usd)::DOUBLE FROM digests")
    assert window.total("cost_usd") == pytest.approx(cost, abs=5e-6)
    assert {row[1] for row in window.charted("spend")} == {"claude-haiku-4-5"}
    window.take_picture("guest")
    window.open(showcase.path_of_newest("labels"))
    expect(frame.locator("[data-problem='404']")).to_contain_text(NOTHING)
    assert frame.locator("article").count() == 0


def test_of_other_dags_the_server_tells_a_guest_nothing(showcase: Showcase) -> None:
    hidden = showcase.newest("labels")
    place = {"dag_id": "labels", "run_id": hidden["run_id"]}
    ours = {"dag_id": "public_digests", "run_id": showcase.runs["public_digests"][0]}
    for path in (f"submissions/{hidden['id']}", f"submissions/{hidden['id']}/rows"):
        for where in (place, {**place, "dag_id": "unheard_of"}, {**ours, "run_id": hidden["run_id"]}, ours):
            answer = showcase.ask("guest", path, **where)
            assert (answer.status_code, answer.json()) == (404, {"detail": NOTHING})
    for narrowed in (place, {"model": "claude-sonnet-5"}, {"state": "gone"}):
        listed = showcase.ask("guest", "submissions", **narrowed).json()
        assert (listed["submissions"], listed["total"], listed["dags"]) == ([], 0, ["public_digests"])
        drawn = showcase.ask("guest", "charts", **narrowed).json()
        assert not any(drawn["totals"].values())
        assert drawn["spend"] == drawn["outcomes"] == drawn["durations"] == []


def test_who_may_not_read_xcoms_sees_no_errors_and_no_rows(visit: Callable[..., Window], showcase: Showcase) -> None:
    window = visit("reader")
    frame = window.open()
    assert window.rows.count() == 9
    window.row("labels").locator("[data-action=open]").click()
    expect(frame.locator("[data-problem='403']")).to_contain_text("XComs")
    assert frame.locator("article").count() == 0
    one = showcase.newest("labels")
    where = {"dag_id": "labels", "run_id": one["run_id"]}
    for path in (f"submissions/{one['id']}", f"submissions/{one['id']}/rows"):
        assert showcase.ask("reader", path, **where).status_code == 403
    listed = showcase.ask("reader", "submissions").text
    assert "ticket-0" not in listed
    assert "Overloaded" not in listed


def test_who_is_not_logged_in_is_asked_to(visit: Callable[..., Window], showcase: Showcase) -> None:
    for path in ("submissions", "submissions/any", "submissions/any/rows", "charts"):
        answer = showcase.ask(None, path, dag_id="labels", run_id=showcase.runs["labels"][0])
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/json"
    window = visit(None)
    window.go("/claude-batch/page")
    problem = window.page.locator("[data-problem='401']").first
    expect(problem).to_contain_text("You are not logged in")
    window.take_picture("not_logged_in")
    problem.get_by_role("link", name="Log in").click()
    window.page.wait_for_url(re.compile("/auth/login"))
