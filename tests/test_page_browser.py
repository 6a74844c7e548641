"""The page in a real browser: the list, a submission, the charts, and a batch that ends while somebody looks."""

from collections.abc import Callable
from datetime import date
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from browser import PAGE, Window, numbers, values
from playwright.sync_api import expect
from showcase import HOUR, Showcase

# Airflow starts and gets a past, which a busy machine takes minutes for
pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]
ROUNDED = 5e-6  # receipts round each sum to a millionth of a dollar
INJECTED = "<img src=x onerror=__pwned=1>"
SCRIPT = "<script>__pwned=1</script>"
TABLES = "(FROM ticket_labels UNION ALL BY NAME FROM digests UNION ALL BY NAME FROM injections)"
LATEST = TABLES.replace("ticket_labels", "ticket_labels_latest")
DAY = "CAST(submitted_at AS DATE)::VARCHAR"
COSTS = "sum(cost_usd)::DOUBLE, sum(live_cost_usd)::DOUBLE"
USED = "count(*)::INT, sum(input_tokens)::INT, sum(output_tokens)::INT, sum(cost_usd)::DOUBLE"


def test_who_logs_in_finds_the_page_in_the_menu(visit: Callable[..., Window], showcase: Showcase) -> None:
    window = visit(None)
    window.log_in("admin", showcase.password("admin"))
    window.page.get_by_role("button", name="Browse").click()
    window.page.get_by_role("menuitem", name="Claude Batches").click()
    window.settled()
    assert window.page.url == f"{showcase.url}{PAGE}"
    assert set(window.dags) == set(showcase.runs)


def test_submissions_are_listed_newest_first(window: Window) -> None:
    frame = window.open()
    moments = values(window.rows.locator("[data-field=submitted] time"), "datetime")
    assert moments == sorted(moments, key=str, reverse=True)
    assert window.dags[0] == "running"
    assert window.dags[-5:] == ["labels", *["forgotten"] * 4]
    assert values(window.rows, "data-state")[1:] == [*["loaded"] * 4, "ended", "ended", "gone", "gone"]
    banner = frame.locator("[data-banner=never_loaded]")
    expect(banner).to_contain_text("2 submissions ended and were never loaded.")
    banner.get_by_role("button", name="Show them").click()
    expect(frame.locator("[data-filter=state] [data-value=ended]")).to_have_attribute("aria-pressed", "true")
    expect(window.row("forgotten").locator("[data-flag=never_loaded]")).to_have_text("never loaded · 18 days left")


def test_links_lead_to_airflows_own_pages(window: Window, showcase: Showcase) -> None:
    window.open()
    row = window.row("forgotten")
    index = row.locator("[data-field=task]").inner_text().removeprefix("submit [").removesuffix("]")
    run = showcase.path_of_run("forgotten")
    links = [row.locator(f"[data-field={name}]").get_attribute("href") for name in ("dag", "run", "task")]
    assert links == ["/dags/forgotten", run, f"{run}/tasks/submit/mapped/{index}"]
    window.row("labels").locator("[data-field=task]").click()
    expect(window.page.get_by_role("heading", name="batch.submit")).to_be_visible()
    assert window.page.url == f"{showcase.url}{showcase.path_of_run('labels')}/tasks/batch.submit"
    window.page.go_back()
    window.settled()
    assert window.page.url == f"{showcase.url}{PAGE}"


def test_retry_rounds_are_folded_under_their_first(window: Window) -> None:
    frame = window.open()
    rounds = frame.locator("tr[data-round]")
    assert (frame.locator("[data-action=fold]").count(), rounds.count()) == (1, 0)
    row = window.row("labels")
    row.locator("[data-action=fold]").click()
    expect(rounds).to_have_count(2)
    assert rounds.locator("[data-field=task]").all_inner_texts() == ["batch.submit", "batch.submit_2"]
    assert numbers(rounds.locator("td[data-field=outcomes]")) == [36, 9]
    assert values(rounds.locator("td[data-field=shards]")) == ["3/3", "1/1"]
    (whole,) = numbers(row.locator("td[data-field=cost]"))
    assert sum(numbers(rounds.locator("td[data-field=cost]"))) == pytest.approx(whole, abs=ROUNDED)
    rounds.last.scroll_into_view_if_needed()
    window.take_picture("rounds")
    row.locator("[data-action=fold]").click()
    expect(rounds).to_have_count(0)


def test_filters_narrow_list_and_charts_and_survive_a_reload(window: Window, showcase: Showcase) -> None:
    frame = window.open()
    requests, everything = frame.locator("[data-total=requests]"), window.total("cost_usd")
    frame.locator("[data-filter=dag_id]").select_option("public_digests")
    expect(window.rows).to_have_count(2)
    expect(requests).to_have_attribute("data-value", "16")
    assert 0 < window.total("cost_usd") < everything
    since = showcase.newest("public_digests")["submitted_at"][:10]
    frame.locator("[data-filter=since]").fill(since)
    expect(window.rows).to_have_count(1)
    assert window.page.url == f"{showcase.url}{PAGE}?dag_id=public_digests&since={since}"

    frame.locator("[data-action=charts]").click()
    window.page.reload()
    window.settled()
    expect(window.rows).to_have_count(1)
    expect(frame.locator("[data-filter=dag_id]")).to_have_value("public_digests")
    expect(frame.locator("[data-filter=since]")).to_have_value(since)
    expect(requests).to_have_count(0)
    frame.locator("[data-action=charts]").click()
    expect(requests).to_have_attribute("data-value", "8")

    frame.locator("[data-action=reset]").click()
    expect(window.rows).to_have_count(9)
    assert window.page.url == f"{showcase.url}{PAGE}"
    frame.locator("[data-filter=model]").select_option("claude-sonnet-5")
    expect(window.rows).to_have_count(1)
    assert window.dags == ["labels"]
    frame.locator("[data-filter=model]").select_option("")
    frame.locator("[data-filter=state] [data-value=gone]").click()
    expect(window.rows).to_have_count(2)
    window.page.go_back()
    expect(window.rows).to_have_count(9)


def test_a_date_is_asked_for_once_it_is_typed_and_is_one_step_back(
    visit: Callable[..., Window], showcase: Showcase
) -> None:
    window = visit(locale="en-US")
    frame = window.open()
    asked: list[str] = []
    window.page.on("request", lambda request: asked.extend(parse_qs(urlsplit(request.url).query).get("since", [])))
    steps = window.steps
    day = showcase.newest("public_digests")["submitted_at"][:10]
    since = frame.locator("[data-filter=since]")
    since.focus()
    window.page.keyboard.type(f"{date.fromisoformat(day):%m%d%Y}")
    window.page.wait_for_url(f"{showcase.url}{PAGE}?since={day}")
    expect(window.rows).not_to_have_count(9)
    assert set(asked) == {day}
    assert window.steps == steps + 1
    expect(since).to_be_focused()
    window.page.go_back()
    expect(window.rows).to_have_count(9)
    expect(since).to_have_value("")


def test_charts_of_centuries_show_the_days_that_have_something(visit: Callable[..., Window]) -> None:
    window = visit(locale="en-US")
    frame = window.open(f"{PAGE}?since=2000-01-01&until=2999-12-31")
    frame.locator("[data-chart=outcomes] svg").focus()
    said = []
    for key in ("Home", "End"):
        window.page.keyboard.press(key)
        said.append(frame.locator("[data-chart=outcomes] .tip strong").inner_text().split(":")[0])
    days = [date.fromisoformat(str(row[0])) for row in window.charted("outcomes")]
    assert said == [f"{day:%b} {day.day}" for day in (days[0], days[-1])]


def test_a_page_past_the_last_shows_the_last(window: Window, showcase: Showcase) -> None:
    window.open()
    steps = window.steps
    frame = window.open(f"{PAGE}?offset=1000")
    expect(window.rows).to_have_count(9)
    expect(frame.locator("[data-total=submissions]")).to_have_attribute("data-value", "9")
    window.page.wait_for_url(f"{showcase.url}{PAGE}")
    assert window.steps == steps + 1


def test_a_submission_shows_its_shards_moments_errors_and_tokens(window: Window, showcase: Showcase) -> None:
    frame = window.open()
    window.row("labels").locator("[data-action=open]").click()
    expect(frame.locator("section[data-round]")).to_have_count(2)
    first, second = frame.locator("section[data-round]").all()
    assert numbers(first.locator("[data-batch] [data-field=requests]")) == [15, 15, 6]
    assert numbers(second.locator("[data-batch] [data-field=requests]")) == [9]
    steps = first.locator(".timeline li")
    assert values(steps, "data-step") == ["submitted", "ended", "noticed", "loaded"]
    assert steps.locator("time").count() == 4
    errors = first.locator("[data-part=errors] tbody tr")
    assert numbers(errors.locator("[data-field=count]")) == [5, 3]
    assert errors.locator("[data-field=error]").all_inner_texts() == [
        "overloaded_error: Overloaded",
        "invalid_request_error: Output blocked by content filtering policy",
    ]
    failed = showcase.query("SELECT custom_id FROM ticket_labels WHERE error_type = 'overloaded_error'")
    examples = errors.first.locator("code").all_inner_texts()
    assert len(examples) == 3
    assert {(example,) for example in examples} < set(failed)
    answers = "attempt = 1 AND model IS NOT NULL"
    used = showcase.query(f"SELECT model, {USED} FROM ticket_labels WHERE {answers} GROUP BY model")
    assert len(used) == 2
    for model, *expected in used:
        cells = first.locator(f"[data-model={model}] [data-value]")
        shown = dict(zip(values(cells, "data-field"), numbers(cells), strict=True))
        names = ("rows", "input_tokens", "output_tokens", "cost")
        assert [shown[name] for name in names] == pytest.approx(expected, abs=ROUNDED)
    window.take_picture("submission")
    frame.locator("[data-action=back]").click()
    expect(window.rows).to_have_count(9)


def test_rows_are_read_from_the_warehouse_when_somebody_asks(window: Window, showcase: Showcase) -> None:
    first = window.open(showcase.path_of_newest("labels")).locator("section[data-round='1']")
    shown = first.locator("[data-custom-id]")
    assert shown.count() == 0
    first.locator("[data-action=rows]").click()
    first.locator("[data-loaded='1']").wait_for()
    failed = "attempt = 1 AND (status != 'succeeded' OR problem IS NOT NULL)"
    expected = showcase.query(f"SELECT custom_id FROM ticket_labels WHERE {failed}")
    assert sorted(map(str, values(shown, "data-custom-id"))) == sorted(custom_id for (custom_id,) in expected)
    first.locator("[data-rows=all]").click()
    expect(shown).to_have_count(36)
    answer = first.locator("[data-custom-id=ticket-007] pre")
    ((text,),) = showcase.query("SELECT text FROM ticket_labels WHERE custom_id = 'ticket-007'")
    expect(answer).to_have_text(text)
    answer.scroll_into_view_if_needed()


def test_charts_show_what_the_warehouse_adds_up(window: Window, showcase: Showcase) -> None:
    frame = window.open(f"{PAGE}?state=loaded")
    by_model = f"SELECT {DAY}, model, count(*), {COSTS} FROM {TABLES} WHERE model IS NOT NULL GROUP BY ALL ORDER BY ALL"
    expected = showcase.query(by_model)
    shown = window.charted("spend")
    assert len(expected) == 4
    assert [row[:3] for row in shown] == [[day, model, str(rows)] for day, model, rows, _, _ in expected]
    for row, (*_, cost, live) in zip(shown, expected, strict=True):
        assert list(map(float, row[3:])) == pytest.approx([cost, live, live - cost], abs=ROUNDED)
    ((cost, live),) = showcase.query(f"SELECT {COSTS} FROM {TABLES}")
    assert window.total("cost_usd") == pytest.approx(cost, abs=ROUNDED)
    assert window.total("saved_usd") == pytest.approx(live - cost, abs=ROUNDED)

    outcomes = "count(*) FILTER (status = 'succeeded'), count(*) FILTER (status = 'errored')"
    by_day = showcase.query(f"SELECT {DAY}, {outcomes} FROM {LATEST} GROUP BY ALL ORDER BY ALL")
    assert window.charted("outcomes") == [list(map(str, row)) for row in by_day]
    *batches, _, _ = window.charted("durations")
    assert [row for row in batches if row[1] != "0"] == [["60", "6"], ["1200", "1"]]
    ((count,),) = showcase.query(f"SELECT count(DISTINCT batch_id) FROM {TABLES}")
    assert window.total("batches") == count == 7
    assert frame.locator("figure svg").count() == 0


def test_the_keyboards_place_in_a_chart_outlives_a_redraw(window: Window) -> None:
    chart = window.open().locator("[data-chart=outcomes]")
    plot, tip = chart.locator("svg"), chart.locator(".tip")
    plot.focus()
    window.page.keyboard.press("End")
    last = tip.inner_text()
    window.page.keyboard.press("ArrowLeft")
    before = tip.inner_text()
    assert before != last
    width = plot.get_attribute("width") or ""
    window.page.set_viewport_size({"width": 1300, "height": 1000})
    expect(plot).not_to_have_attribute("width", width)
    expect(tip).to_be_visible()
    expect(tip).to_have_text(before, use_inner_text=True)
    window.page.keyboard.press("ArrowRight")
    expect(tip).to_have_text(last, use_inner_text=True)


def test_an_open_page_sees_a_batch_end_while_airflow_still_waits(window: Window, showcase: Showcase) -> None:
    window.open(f"{PAGE}?dag_id=running")
    expect(window.rows).to_have_attribute("data-state", "in_progress")
    window.take_picture("in_progress")
    window.page.evaluate("window.isTheSame = true")
    showcase.emulator.advance(2 * HOUR)
    expect(window.rows).to_have_attribute("data-state", "ended")
    expect(window.rows.locator("[data-outcome=succeeded]")).to_have_attribute("data-value", "5")
    assert window.page.evaluate("window.isTheSame")
    states = {one["task_id"]: one["state"] for one in showcase.task_instances("running")}
    assert states["batch.wait"] == "deferred"


def test_markup_in_answers_ids_and_errors_stays_text(window: Window, showcase: Showcase) -> None:
    frame = window.open(showcase.path_of_newest("injections"))
    errors = frame.locator("[data-part=errors]")
    error = f"invalid_request_error: {INJECTED}: Extra inputs are not permitted"
    expect(errors.locator("[data-field=error]")).to_have_text(error)
    assert errors.locator("code").all_inner_texts() == [INJECTED]
    frame.locator("[data-action=rows]").click()
    frame.locator("[data-rows=all]").click()
    expect(frame.locator("[data-custom-id]")).to_have_count(3)
    assert set(frame.locator("td[data-field=custom_id]").all_inner_texts()) == {"<b>bold</b>", INJECTED, SCRIPT}
    answer = frame.locator(f"[data-custom-id='{SCRIPT}'] pre")
    expect(answer).to_contain_text('<script>alert("x")</script> <b>bold</b> &amp; <!-- comment -->')
    answer.scroll_into_view_if_needed()
    assert frame.locator("main :is(img, script, b)").count() == 0
    assert [one.evaluate("typeof window.__pwned") for one in window.page.frames] == ["undefined"] * 2


def test_a_receipt_that_cannot_be_read_is_named_with_a_link_to_its_task(window: Window, showcase: Showcase) -> None:
    run_id, api = showcase.runs["running"][-1], showcase.stack.api
    entries = f"/dags/running/dagRuns/{quote(run_id, safe='')}/taskInstances/batch.load/xcomEntries"
    odd = {"v": 1, "submission": "sub_odd", "rows": -1, "models": [INJECTED]}
    api.call("POST", entries, json={"key": "claude_batch", "value": odd})
    try:
        frame = window.open()
        note = frame.locator("[data-note=left_out]")
        expect(note).to_contain_text("1 receipt cannot be read, and is not counted on this page:")
        expect(note).to_contain_text("rows is not between 0 and 10,000,000,000,000.")
        task = note.locator("[data-field=task]")
        assert task.get_attribute("href") == f"{showcase.path_of_run('running')}/tasks/batch.load"
        assert set(window.dags) == set(showcase.runs)
        frame = window.open(showcase.path_of_newest("running"))
        expect(frame.locator("[data-note=left_out]")).to_contain_text("batch.load")
    finally:
        api.call("DELETE", f"{entries}/claude_batch")
