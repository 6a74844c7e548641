"""The page among Airflow's own: its tabs, its links, its theme, and how it is used on a phone and by keyboard."""

import re
from collections.abc import Callable

import pytest
from browser import PAGE, Window, values
from playwright.sync_api import Locator, expect
from showcase import Showcase

pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]
FOCUSED = """({ ownerDocument: { activeElement: { dataset } } }) =>
    dataset.filter ?? dataset.action ?? dataset.field ?? dataset.value ?? ''"""
LIGHT = """(element) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parts = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
    };
    const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    let behind = element;
    while (parts(getComputedStyle(behind).backgroundColor)[3] < 1) behind = behind.parentElement ?? window.frameElement;
    return [getComputedStyle(behind).backgroundColor, getComputedStyle(element).color].map(parts).map(luminance);
}"""


def contrast(element: Locator) -> float:
    """Return the contrast of a text to what is behind it, as the WCAG reckon it."""
    darker, lighter = sorted(element.evaluate(LIGHT))
    return (lighter + 0.05) / (darker + 0.05)


def overflow(element: Locator) -> int:
    """Return by how much a page is too wide, also with the letter spacing that the WCAG (1.4.12) have readers set."""
    return element.evaluate("""(page) => Math.max(...["", "0.12em"].map((spacing) => {
        page.style.letterSpacing = spacing;
        const wide = page.scrollWidth - page.clientWidth;
        page.style.letterSpacing = "";
        return wide;
    }))""")


@pytest.mark.parametrize("place", ["dag", "run"])
def test_a_tab_shows_what_is_of_its_dag_or_run(window: Window, showcase: Showcase, place: str) -> None:
    path, count = {"dag": ("/dags/forgotten", 4), "run": (showcase.path_of_run("forgotten", 0), 2)}[place]
    window.go(path)
    window.page.get_by_role("link", name="Claude Batches").click()
    frame = window.settled()
    expect(window.rows).to_have_count(count)
    assert frame.locator("[data-filter=dag_id], [data-field=dag]").count() == 0
    assert values(window.rows, "data-state") == ["ended", "ended", "gone", "gone"][-count:]
    window.take_picture(f"tab_of_{place}")
    frame.locator("[data-action=open]").first.click()
    expect(frame.locator("article")).to_be_visible()
    window.page.go_back()
    expect(window.rows).to_have_count(count)


def test_a_task_links_to_the_console_and_to_the_page(window: Window, showcase: Showcase) -> None:
    for task_id in ("batch.submit", "batch.wait", "batch.load"):
        links = showcase.links("labels", task_id)
        assert set(links) == {"Claude Batches", "Claude Console"}
        assert links["Claude Console"].startswith("https://platform.claude.com/")
    window.go(f"{showcase.path_of_run('labels')}/tasks/batch.submit/details")
    link = window.page.locator(f"a[href^='{showcase.url}{PAGE}?']")
    expect(link).to_have_text("Claude Batches")
    expect(window.page.get_by_role("link", name="Claude Console")).to_be_visible()
    window.take_picture("extra_links")
    window.page.goto(link.get_attribute("href") or "")
    window.settled()
    expect(window.rows).to_have_count(1)
    assert window.dags == ["labels"]


def test_airflow_shows_receipt_and_defaults_readably(window: Window, showcase: Showcase) -> None:
    task = f"{showcase.path_of_run('labels')}/tasks/batch.submit"
    window.go(f"{task}/rendered_templates")
    expect(window.page.get_by_text('"max_tokens"')).to_be_visible()
    expect(window.page.get_by_text("36 given")).to_be_visible()
    window.take_picture("rendered_templates")
    window.go(f"{task}/xcom")
    window.page.get_by_role("button", name="Expand all extra JSON").click()
    receipt = window.page.get_by_role("row").filter(has=window.page.get_by_role("cell", name="claude_batch"))
    expect(receipt).to_contain_text('"dag_id": "labels"')
    expect(receipt).to_contain_text('"claude-sonnet-5"')


def test_the_page_follows_airflows_theme(window: Window) -> None:
    frame = window.open()
    text = frame.locator("main")
    behind, _ = text.evaluate(LIGHT)
    assert behind > 0.8
    assert contrast(text) >= 4.5
    window.page.get_by_role("button", name="User").click()
    window.page.get_by_role("menuitem", name="Appearance").click()
    window.page.get_by_role("menuitemradio", name="Dark").click()
    expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
    behind, _ = text.evaluate(LIGHT)
    assert behind < 0.1
    shown = ("main", "h1", "[data-field=dag]", "[data-field=run]", "[data-state] .badge", "th", "[data-total] dt")
    assert {where: contrast(frame.locator(where).first) < 4.5 for where in shown} == dict.fromkeys(shown, False)


@pytest.mark.parametrize("view", ["list", "submission"])
def test_the_page_fits_a_phone(visit: Callable[..., Window], showcase: Showcase, view: str) -> None:
    window = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    path = PAGE if view == "list" else showcase.path_of_newest("labels")
    frame = window.open(path)
    frame.locator("[data-submission]").first.wait_for()
    assert overflow(frame.locator("html")) == 0
    window.take_picture(f"phone_{view}")
    window.go(path.replace(PAGE, "/claude-batch/page"))
    window.page.locator("body[data-ready='1'] [data-submission]").first.wait_for()
    assert overflow(window.page.locator("html")) == 0
    assert window.page.evaluate("innerWidth") == 360
    window.take_picture(f"phone_{view}_alone", full_page=True)


def test_the_keyboard_reaches_everything(window: Window) -> None:
    frame = window.open()
    frame.locator("main").focus()
    reached: list[str] = []
    while "fold" not in reached:
        assert len(reached) < 120, reached
        window.page.keyboard.press("Tab")
        reached.append(frame.locator("body").evaluate(FOCUSED))
    assert {"dag_id", "model", "since", "until", "loaded"} < set(reached)
    assert {"charts", "table", "open", "dag", "run", "task"} < set(reached)
    fold = frame.locator("[data-action=fold]")
    assert fold.evaluate("(button) => getComputedStyle(button).outlineStyle") != "none"
    for key, expanded in (("Enter", "true"), ("Space", "false"), ("Space", "true")):
        window.page.keyboard.press(key)
        expect(fold).to_have_attribute("aria-expanded", expanded)
        expect(fold).to_be_focused()
    expect(frame.locator("tr[data-round]")).to_have_count(2)
    window.take_picture("unfolded_by_keyboard")
    frame.locator("[data-action=open]").first.focus()
    window.page.keyboard.press("Enter")
    expect(frame.locator("article")).to_be_visible()
    assert re.search("submission=sub_", window.page.url)
