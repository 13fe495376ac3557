"""A browser for tests: Debian's Chromium, which knows no other server than the service."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.debian import tool

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# names that are not loopback do not resolve, whatever a page asks for
_ARGUMENTS = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
_REPORT_VIOLATIONS = """addEventListener("securitypolicyviolation", (event) =>
  console.error("policy violated:", event.violatedDirective, event.blockedURI, event.sample))"""


class Watched:
    """What a page did that it must not do."""

    def __init__(self, page: "Page", url: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.may_fail = False  # the browser reports requests that are refused or not answered
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url, url))

    def _said(self, kind: str, text: str) -> None:
        is_failure = "Failed to load resource" in text or "net::ERR" in text
        if kind in ("error", "warning") and not (self.may_fail and is_failure):
            self.complaints.append(text)

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((f"{url}/", "data:", "blob:")):
            self.foreign.append(asked)


@contextmanager
def browser() -> "Iterator[Browser]":
    """A fresh browser without a page."""
    chromium = tool("chromium", "chromium")
    playwright = importlib.import_module("playwright.sync_api")  # not all machines have it
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
        try:
            yield launched
        finally:
            launched.close()


def page_of(visitor: "Browser", url: str, **options: Any) -> "tuple[Page, Watched]":
    """A page with cookies and storage of its own, and what it did wrong."""
    page = visitor.new_context(base_url=url, **options).new_page()
    page.set_default_timeout(200_000)  # also on a busy machine
    page.add_init_script(_REPORT_VIOLATIONS)
    return page, Watched(page, url)


@contextmanager
def browser_page(url: str) -> "Iterator[tuple[Page, Watched]]":
    """The only page of a fresh browser, and what it did wrong."""
    with browser() as visitor:
        yield page_of(visitor, url)
