"""A real browser: Chromium, headless, and windows in it that remember whatever should not have happened."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, FrameLocator, Locator, Request, expect
from playwright.sync_api import sync_playwright as playwright

PAGE = "/plugin/claude-batches"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 90_000  # for a machine that has much else to do
expect.set_options(timeout=PATIENCE)
# Chromium reports each answer with a 4xx as an error, also where a test wants to be refused.
_REFUSED = "Failed to load resource: the server responded with a status of 4"
_POLICY = re.compile("Content.Security.Policy", re.IGNORECASE)


def path() -> str:
    """Return the browser that CHROMIUM names, or the first there is; without one, skip the test, but never in CI."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("There is no Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM.")
    return found


@contextmanager
def started() -> Iterator[Browser]:
    """Start Chromium."""
    with playwright() as driver:
        browser = driver.chromium.launch(executable_path=path(), args=ARGS, timeout=PATIENCE)
        yield browser
        browser.close()


def pictures(folder: Path) -> Path:
    """Return where pictures are kept: the folder that CLAUDE_BATCH_SCREENSHOTS names, or else this one."""
    chosen = Path(os.environ.get("CLAUDE_BATCH_SCREENSHOTS") or folder)
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


class Window:
    """One page of Airflow's, with ours in it."""

    def __init__(self, context: BrowserContext, url: str, pictures: Path) -> None:
        context.set_default_timeout(PATIENCE)
        self.url, self._pictures = url, pictures
        self.page = context.new_page()
        self.offences: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.offences.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._watch)

    def go(self, path: str) -> None:
        self.page.goto(f"{self.url}{path}")

    def open(self, path: str = PAGE) -> FrameLocator:
        """Go to a page of Airflow's that embeds ours, and return ours once it is complete."""
        self.go(path)
        return self.settled()

    def settled(self) -> FrameLocator:
        self.frame.locator("body[data-ready='1']").wait_for()
        return self.frame

    def log_in(self, username: str, password: str) -> None:
        """Log in as people do."""
        self.go("/")
        self.page.fill("input[name=username]", username)
        self.page.fill("input[name=password]", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda url: "/auth/login" not in url)

    @property
    def frame(self) -> FrameLocator:
        return self.page.frame_locator("iframe[title='Claude Batches']")

    @property
    def rows(self) -> Locator:
        """The submissions of the list."""
        return self.frame.locator("tr[data-submission]")

    @property
    def dags(self) -> list[str]:
        return self.rows.locator("[data-field=dag]").all_inner_texts()

    def row(self, dag_id: str) -> Locator:
        """Return the newest submission of a Dag."""
        return self.rows.filter(has=self.page.locator(f"[data-field=dag][title={dag_id}]")).first

    @property
    def steps(self) -> int:
        """How many steps the history has."""
        return self.page.evaluate("history.length")

    def total(self, name: str) -> float:
        """Return one of the big figures, exactly."""
        return float(self.frame.locator(f"[data-total={name}]").get_attribute("data-value") or "nan")

    def charted(self, name: str) -> list[list[str | None]]:
        """Return the values of a chart, exactly, as its table holds them."""
        figure = self.frame.locator(f"[data-chart={name}]")
        figure.get_by_role("button", name="Show as table").click()
        return [values(row.locator("th, td")) for row in figure.locator("tbody tr").all()]

    def take_picture(self, name: str, **options: Any) -> None:
        self.page.screenshot(path=self._pictures / f"{name}.png", **options)

    def _hear(self, message: ConsoleMessage) -> None:
        is_ours = "/claude-batch/" in message.location.get("url", "") and not message.text.startswith(_REFUSED)
        if message.type == "error" and (is_ours or _POLICY.search(message.text)):
            self.offences.append(f"console: {message.text}")

    def _dismiss(self, dialog: Dialog) -> None:
        self.offences.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self.offences.append(f"asked {urlsplit(request.url).netloc} for {request.url}")


def values(locator: Locator, attribute: str = "data-value") -> list[str | None]:
    """Return an attribute of each element."""
    return locator.evaluate_all("(all, name) => all.map((one) => one.getAttribute(name))", attribute)


def numbers(locator: Locator) -> list[float]:
    return [float(value or "nan") for value in values(locator)]
