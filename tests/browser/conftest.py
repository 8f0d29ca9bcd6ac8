"""One Chromium, one server and one set of toy jobs for nearly all browser tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.browser.chromium import Missing, axe, launch
from tests.browser.stage import Stage
from tests.conftest import POLICY_CACHE
from tests.toy_api import KEY
from tests.toy_driver import Forks

WAIT_MS = 45_000  # only what fails takes it: the machine may have much else to do
expect.set_options(timeout=WAIT_MS)


def skip_or_fail(error: Missing) -> NoReturn:
    """Where everything has to be there, what is missing is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error))
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    try:
        found = launch(playwright)
    except Missing as error:
        skip_or_fail(error)
    yield found
    found.close()


@pytest.fixture(scope="session")
def axe_script() -> str:
    try:
        return axe(POLICY_CACHE.parent / "axe")
    except Missing as error:
        skip_or_fail(error)


@pytest.fixture(scope="session")
def stage(browser: Browser, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """After the browser, so that nothing starts where there is none."""
    assert browser.is_connected()
    with Stage(tmp_path_factory.mktemp("stage"), forks) as found:
        yield found


class Viewer:
    """A browser's window that is signed in, and what went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context, self.url = context, url
        self.problems: list[str] = []

    def page(self) -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(f"pageerror: {error}"))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "console", lambda said: self.problems.append(f"{said.type}: {said.text}") if said.type == "error" else None
        )
        return page

    def sign_in(self, key: str = KEY) -> Page:
        page = self.page()
        page.goto(f"{self.url}/signin")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        return page

    def open(self, path: str) -> Page:
        page = self.page()
        page.goto(self.url + path)
        return page


NewViewer = Callable[..., Viewer]


@pytest.fixture(scope="session")
def new_viewer(browser: Browser, stage: Stage) -> Iterator[NewViewer]:
    """Another person at another browser; of `options`, Playwright's for a context."""
    made: list[Viewer] = []

    def make(key: str | None = KEY, *, url: str = "", **options: Any) -> Viewer:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 720}, "accept_downloads": True, **options}
        )
        context.set_default_timeout(WAIT_MS)
        viewer = Viewer(context, url or stage.url)
        made.append(viewer)
        if key is not None:
            viewer.sign_in(key).close()
        return viewer

    yield make
    for viewer in made:
        viewer.context.close()


@pytest.fixture(scope="session")
def viewer(new_viewer: NewViewer) -> Viewer:
    """Signed in with the server's own key."""
    return new_viewer()


def wait_for_points(page: Page, name: str, least: int) -> None:
    """Until the chart whose label begins so was drawn with so many rows."""
    drawn = """([name, least]) => {
        const found = [...document.querySelectorAll('.chart-canvas')];
        return found.some((one) => one.ariaLabel.startsWith(name) && Number(one.dataset.points || 0) >= least);
    }"""
    page.wait_for_function(drawn, arg=[name, least])
