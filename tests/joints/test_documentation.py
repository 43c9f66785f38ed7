"""/docs and /redoc: nothing comes from elsewhere, and a browser shows every route."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.browser import chromium_path
from tests.joints.job_door import Door, serving

KEY = "callers-key-one"
PAGES = ("/docs", "/redoc")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.registry.close()


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_files_of_this_worker_and_no_inline_script(door: Door, path: str) -> None:
    async with serving(door.app) as client:
        page = await client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy and "default-src 'none'" in policy
        assert re.findall(r"<script>|<style| on\w+=", page.text) == []
        named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert len(named) >= 3
        for address in named:
            file = await client.get(urljoin(path, address))
            assert file.status_code == 200 and len(file.content) > 50, address
            assert file.headers["content-type"].partition(";")[0] in (
                "text/javascript", "text/css", "image/png",
            )  # fmt: skip
        missing = await client.get("/docs/assets/../application.py")
        assert missing.status_code == 404


async def test_the_files_need_what_every_route_needs(tmp_path: Path) -> None:
    door = Door(tmp_path, INGRESS_API_KEY=KEY)
    async with serving(door.app) as client:
        for path in (*PAGES, "/docs/assets/swagger-ui.css"):
            assert (await client.get(path)).status_code == 401
            keyed = await client.get(path, headers={"X-Internal-API-Key": KEY})
            assert keyed.status_code == 200
    door.registry.close()


@pytest.mark.slow
@pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed")
async def test_a_browser_without_internet_shows_every_route(door: Door) -> None:
    from playwright.async_api import async_playwright

    async with serving(door.app) as client, async_playwright() as playwright:
        base = str(client.base_url).rstrip("/")
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--proxy-server=127.0.0.1:9",
                  "--proxy-bypass-list=127.0.0.1"],
        )  # fmt: skip
        page = await browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        for path in PAGES:
            await page.goto(base + path)
            shown = page.locator("#swagger-ui, h2").filter(has_text="Submit many jobs at once")
            await shown.first.wait_for(timeout=60_000)
        await page.goto(base + "/docs")
        await page.locator("#operations-health-hc .opblock-summary-control").click()
        await page.get_by_role("button", name="Try it out").click()
        await page.get_by_role("button", name="Execute").click()
        answered = page.locator(".live-responses-table tbody .response-col_status").first
        await answered.wait_for(timeout=60_000)
        assert (await answered.inner_text()).strip().startswith("200")
        await browser.close()
    # Redoc asks for its maker's logo, and is not let out.
    assert [fault for fault in faults if "cdn.redoc.ly/redoc/logo-mini.svg" not in fault] == []
