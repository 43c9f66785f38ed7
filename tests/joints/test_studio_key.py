"""The studio in a real browser, in front of a worker that needs a key."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect

from tests.browser import (
    WAIT_MS,
    Scheme,
    Visitor,
    chromium_path,
    faults_of,
    open_chromium,
    type_into,
    window,
)
from tests.joints.job_door import Door, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed"),
]

KEY = "a-key-of-32-characters-for-tests"
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LIST = "Your videos will be listed here."


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of this module."""
    expect.set_options(timeout=WAIT_MS)
    with open_chromium() as browser:
        yield browser


@contextmanager
def locked_worker(folder: Path) -> Iterator[str]:
    """Serve the API of a worker that needs a key, in another thread; the address."""
    address: list[str] = []
    is_up, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        door = Door(folder, INGRESS_API_KEY=KEY)
        async with serving(door.app) as client:
            address.append(f"{str(client.base_url).rstrip('/')}/")
            is_up.set()
            await asyncio.to_thread(is_over.wait)
        door.registry.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert is_up.wait(30)
        yield address[0]
    finally:
        is_over.set()
        thread.join()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker that needs a key."""
    with locked_worker(tmp_path_factory.mktemp("locked")) as address:
        yield address


@contextmanager
def visitor_at(browser: Browser, address: str, scheme: Scheme = "light") -> Iterator[Visitor]:
    with window(browser, "desktop", scheme) as context:
        page = context.new_page()
        faults = faults_of(page)
        page.goto(address)
        expect(page.get_by_role("dialog")).to_be_visible()
        yield Visitor(page, faults)
        # A browser writes a line of its own about each answer with 401 or 403.
        assert [fault for fault in faults if not re.search("status of 40[13]", fault)] == []


def enter(page: Page, key: str) -> None:
    """Type a key into the dialog, whose field has the focus."""
    type_into(page.get_by_role("dialog").get_by_label("Key"), key)


def test_a_wrong_key_is_refused_and_the_right_one_opens_the_studio(
    chromium: Browser, worker: str
) -> None:
    with visitor_at(chromium, worker) as somebody:
        page = somebody.page
        enter(page, "wrong")
        expect(page.get_by_text("The key was not accepted.")).to_be_visible()
        enter(page, KEY)
        expect(page.get_by_text(LIST)).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_the_key_stays_in_its_tab(chromium: Browser, worker: str) -> None:
    with visitor_at(chromium, worker) as somebody:
        page = somebody.page
        enter(page, KEY)
        expect(page.get_by_text(LIST)).to_be_visible()
        page.reload()
        expect(page.get_by_text(LIST)).to_be_visible()
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == [] and KEY not in page.url
        other = page.context.new_page()
        other.goto(worker)
        expect(other.get_by_role("dialog")).to_be_visible()


def test_a_key_is_forgotten(chromium: Browser, worker: str) -> None:
    with visitor_at(chromium, worker) as somebody:
        page = somebody.page
        enter(page, KEY)
        expect(page.get_by_text(LIST)).to_be_visible()
        page.get_by_role("button", name="Key").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_role("heading", name="This worker needs a key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_without_a_key_the_page_says_what_is_missing(chromium: Browser, worker: str) -> None:
    with visitor_at(chromium, worker) as somebody:
        page = somebody.page
        page.get_by_role("button", name="Not now").click()
        expect(page.get_by_role("alert")).to_contain_text("Press Key at the top")
        page.get_by_role("button", name="Key").click()
        enter(page, KEY)
        expect(page.get_by_text(LIST)).to_be_visible()


def test_the_names_of_a_hostile_job_are_text(chromium: Browser, tmp_path: Path) -> None:
    names = {"video": MARKUP, "voice": MARKUP}
    body = {"video_url": f"file:///{MARKUP}", "audio_url": "https://h/a.wav", "metadata": names}
    with locked_worker(tmp_path) as address, visitor_at(chromium, address) as somebody:
        page = somebody.page
        headers = {"X-Internal-API-Key": KEY}
        sent = httpx.post(f"{address}v1/avatar/jobs", json=body, headers=headers, trust_env=False)
        assert sent.status_code == 202
        enter(page, KEY)
        card = page.locator(".card")
        expect(card).to_contain_text(MARKUP)
        card.get_by_role("button", name="Open").click()
        expect(page.locator("#job-title")).to_have_text("Waiting")
        assert page.locator("main [onerror], main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dialog_is_accessible(chromium: Browser, worker: str, scheme: Scheme) -> None:
    with visitor_at(chromium, worker, scheme) as somebody:
        assert somebody.violations() == []
