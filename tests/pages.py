"""Fixtures of the page's tests: a real Airflow with submissions of every kind, and windows of a browser onto it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from browser import Window
    from playwright.sync_api import Browser
    from showcase import Showcase

# What is imported here, all tests would need, also those that run in environments of their own.


@pytest.fixture(scope="session")
def showcase(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Showcase]":
    """Airflow, the emulator and a warehouse, with their past; not started where nobody could look at them."""
    import browser
    from showcase import Showcase

    browser.path()
    with Showcase(tmp_path_factory.mktemp("showcase")) as showcase:
        yield showcase


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """A browser; while it runs, asyncio takes its loop for the thread's own, so no other file of tests shares it."""
    import browser

    with browser.started() as chromium:
        yield chromium


@pytest.fixture
def visit(
    chromium: "Browser", showcase: "Showcase", request: pytest.FixtureRequest, tmp_path: Path
) -> "Iterator[Callable[..., Window]]":
    """Open windows, of somebody who is logged in or of nobody; in the end nothing may have been wrong in any."""
    from browser import Window, pictures

    windows: list[Window] = []

    def open_window(username: str | None = "admin", **options: Any) -> Window:
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        if username:
            context.add_cookies([{"name": "_token", "value": showcase.token(username), "url": showcase.url}])
        windows.append(Window(context, showcase.url, pictures(tmp_path)))
        return windows[-1]

    yield open_window
    for window in windows:
        window.take_picture(request.node.name.removeprefix("test_"))
        window.page.context.close()
    assert [offence for window in windows for offence in window.offences] == []


@pytest.fixture
def window(visit: "Callable[..., Window]") -> "Window":
    """A window of the administrator."""
    return visit()
