"""Headless Chromium for the tests of pages: what a reader sees, what the console says, whom a page asks.

A test file takes the fixture with `pytest_plugins = ["browsers"]` and marks itself with
`pytestmark = pytest.mark.browser` (pytest loads it: import nothing from it but types). Debian's browser is
driven (`apt-get install chromium`) by playwright's Python package (`pip install -e '.[browser]'`); where
either is missing, the tests are skipped and say so. Pages with a content security policy refuse
`wait_for_function`: wait with `playwright.sync_api.expect`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("U2A_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-component-update"]
"""CI is root in a container: no sandbox, a small /dev/shm."""
INLINE = ("data", "blob", "about")
"""Schemes that ask nobody."""
WAIT_MS = 20_000
"""A busy machine is slow; a test that waits longer has failed."""
GRAVE = ("serious", "critical")


@dataclass
class Visit:
    """One open page, and what it did since it was opened.

    `complaints`: errors and warnings of the console (a broken content security policy is one of them) and
    uncaught exceptions. `requests`: URL of everything that was asked for, the page itself included.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def outside(self, *ours: str) -> list[str]:
        """What was asked for elsewhere: neither inline nor starting with the page's own or a given URL."""
        own = self.page.url.partition("#")[0]
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme not in INLINE and not url.startswith((own, *ours))
        ]

    def faults_of_access(self) -> list[str]:
        """What axe-core finds serious or critical for people who use a keyboard or a screen reader."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']}: {node['html'][:200]} ({node['failureSummary']})"
            for fault in found
            if fault["impact"] in GRAVE
            for node in fault["nodes"]
        ]

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window: > 0 scrolls sideways."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A running browser. One a module: playwright's event loop must not outlive the tests that need it."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or name it in U2A_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """`visit(url, **context)` opens a page in a context of its own (`color_scheme="dark"`, `viewport=…`)."""
    contexts = []

    def opened(url: str, **context: Any) -> Visit:
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        made = Visit(page)
        page.on("request", lambda request: made.requests.append(request.url))
        page.on("pageerror", lambda error: made.complaints.append(f"exception: {error}"))
        page.on(
            "console",
            lambda said: (
                made.complaints.append(f"{said.type}: {said.text}")
                if said.type in ("error", "warning")
                else None
            ),
        )
        page.goto(url)
        return made

    yield opened
    for context in contexts:
        context.close()
