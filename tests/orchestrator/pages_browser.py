"""An operator of the orchestrator at a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Browser, expect

from tests.browser import Scheme, Visitor, faults_of, type_into, window
from tests.orchestrator.running import ADMIN_KEY, Running


@dataclass(frozen=True, slots=True)
class Operator(Visitor):
    """Somebody who operates an orchestrator."""

    running: Running

    def sign_in(self) -> None:
        """Sign in, by the keyboard alone."""
        self.page.goto(self.running.url)
        type_into(self.page.get_by_label("Admin key"), ADMIN_KEY)
        expect(self.page.get_by_role("heading", name="Overview")).to_be_visible()

    def open(self, path: str) -> None:
        """Open a page and wait until it is followed."""
        self.page.goto(self.running.url + path)
        expect(self.page.locator("#connection")).to_have_text("Live")


@contextmanager
def operator_at(
    browser: Browser, running: Running, size: str = "desktop", scheme: Scheme = "light"
) -> Iterator[Operator]:
    """Open a window of a size in a colour scheme, with cookies of its own."""
    with window(browser, size, scheme) as context:
        page = context.new_page()
        yield Operator(page, faults_of(page), running)
