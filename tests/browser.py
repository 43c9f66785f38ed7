"""A real browser for tests of pages: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

Scheme = Literal["light", "dark"]
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
WAIT_MS = 20_000


def chromium_path() -> str | None:
    """Return where Chromium is; None if it is not installed."""
    return shutil.which("chromium")


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start the browser without a window. It may reach this machine only; its microphone beeps."""
    # Not where tests look for files that are left: the browser's sound leaves some.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="chromium-") as folder,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            env={**os.environ, "TMPDIR": folder},
            # The tests may run as root, and in containers with little shared memory.
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--proxy-server=127.0.0.1:9",
                "--proxy-bypass-list=127.0.0.1;localhost;[::1]",
                "--mute-audio",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


def type_into(field: Locator, text: str) -> None:
    """Type into a field that the page gives the focus to, which it may do after it has loaded."""
    expect(field).to_be_focused()
    field.page.keyboard.type(text)
    expect(field).to_have_value(text)
    field.page.keyboard.press("Enter")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody at a browser. `faults` has what the browser complains about."""

    page: Page
    faults: list[str]

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
def window(
    browser: Browser, size: str = "desktop", scheme: Scheme = "light"
) -> Iterator[BrowserContext]:
    """Open a window of a size in a colour scheme, with cookies of its own."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(WAIT_MS)
    try:
        yield context
    finally:
        context.close()


def faults_of(page: Page) -> list[str]:
    """Return a list that grows with what the browser complains about."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: faults.append(f"a dialog: {dialog.message}"))
    return faults
