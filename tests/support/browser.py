"""A headless browser, and what it does while a page is open."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.support.chromium import FLAGS, find_chromium


@dataclass
class Seen:
    """What the browser did while a page was open."""

    urls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Take note of everything from now on."""
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        page.on("response", lambda r: self.errors.extend([r.url] if r.status >= 400 else []))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(message.text)


@contextmanager
def started() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    found = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.program, args=list(FLAGS), env=found.environment
        )
        yield browser
        browser.close()
