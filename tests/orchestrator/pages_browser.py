"""A real browser for the tests of the pages: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.orchestrator.running import ADMIN_KEY, Running

Scheme = Literal["light", "dark"]
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
WAIT_MS = 20_000


def chromium_path() -> str | None:
    """Return where Chromium is; None if it is not installed."""
    return shutil.which("chromium")


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start the browser without a window. It may reach this machine only."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            # The tests may run as root, and in containers with little shared memory.
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--proxy-server=127.0.0.1:9",
                "--proxy-bypass-list=127.0.0.1;localhost",
                "--mute-audio",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody at a browser. `faults` has what the browser complains about."""

    page: Page
    running: Running
    faults: list[str]

    def sign_in(self) -> None:
        """Sign in, by the keyboard alone."""
        self.page.goto(self.running.url)
        self.page.keyboard.type(ADMIN_KEY)  # the field has the focus
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("heading", name="Overview")).to_be_visible()

    def open(self, path: str) -> None:
        """Open a page and wait until it is followed."""
        self.page.goto(self.running.url + path)
        expect(self.page.locator("#connection")).to_have_text("Live")

    def tab_to(self, name: str) -> None:
        """Press Tab until what has this name has the focus."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(_FOCUSED).strip() == name:
                return
        raise AssertionError(f"the keyboard does not reach {name!r}")

    def violations(self) -> list[str]:
        """Return what axe-core finds on the page."""
        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]

    def overflow_px(self) -> int:
        """Return by how much the page is wider than the window."""
        width: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width


_FOCUSED = """() => {
  const at = document.activeElement;
  return at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText || '';
}"""


@contextmanager
def operator_at(
    browser: Browser, running: Running, size: str = "desktop", scheme: Scheme = "light"
) -> Iterator[Operator]:
    """Open a window of a size in a colour scheme, with cookies of its own."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(WAIT_MS)
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: faults.append(f"a dialog: {dialog.message}"))
    try:
        yield Operator(page, running, faults)
    finally:
        context.close()
