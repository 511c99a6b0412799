"""A real browser on the service's pages, and what it did there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest


@dataclass
class Visit:
    """A page that is open.

    Attributes:
        page: Playwright's.
        errors: what its console complained of, refusals of the content security policy among it.
        requests: every address that it asked for.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def elsewhere(self, url: str) -> list[str]:
        """Requests to another server than this one."""
        return [r for r in self.requests if not r.startswith((url + "/", "data:", f"blob:{url}/"))]


@contextmanager
def visit(url: str) -> Iterator[Visit]:
    """Open a page in headless Chromium; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # no sandbox: tests may run as root; nothing but our own pages is opened
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        seen = Visit(page)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(url)
        try:
            yield seen
        finally:
            browser.close()
