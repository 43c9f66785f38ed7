"""The page at `/` over a real socket: who may load it, what it may load, and that it can be off."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from serve_app.studio.assets import HERE
from tests.joints.job_door import Door, serving

KEY = "the-key-of-callers"
# What a page or a module loads: attributes of HTML, `import` and `from` of JavaScript, CSS.
LOADED = re.compile(
    r"""(?:src|href)="([^"#]+)"|\bfrom "([^"]+)"|\bimport\("([^"]+)"\)|(?<!\.)url\("([^"]+)"\)"""
)
ELSEWHERE = {"./", "docs"}  # links that a user follows


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody without the key that this worker needs."""
    door = Door(tmp_path, INGRESS_API_KEY=KEY)
    async with serving(door.app) as somebody:
        yield somebody
    door.registry.close()


async def test_the_page_loads_without_a_key_and_the_api_needs_one(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert KEY not in page.text
    assert (await client.head("/")).status_code == 200
    assert (await client.get("/v1/avatar/jobs")).status_code == 401
    assert (await client.get("/openapi.json")).status_code == 401
    assert (await client.post("/")).status_code == 401
    assert (await client.get("/studio")).status_code == 401


async def test_all_that_the_page_loads_is_here_and_lasts(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    waiting = {urljoin("/", name) for name in loaded(page) - ELSEWHERE}
    seen: set[str] = set()
    while waiting - seen:
        address = min(waiting - seen)
        seen.add(address)
        answer = await client.get(address)
        assert (address, answer.status_code) == (address, 200)
        assert "immutable" in answer.headers["Cache-Control"]
        if "vendor" not in address and not address.endswith((".svg", ".woff2")):
            waiting |= {urljoin(address, name) for name in loaded(answer.text)}
    kinds = {Path(address).suffix for address in seen}
    assert kinds == {".css", ".js", ".mjs", ".svg", ".woff2"}
    files = {file.name for file in HERE.rglob("*.[cjm]*s")}
    assert {Path(address).name for address in seen} >= files  # nothing is left over


def loaded(text: str) -> set[str]:
    """Return the addresses that a text loads."""
    return {"".join(found) for found in LOADED.findall(text)}


async def test_the_policy_allows_nothing_inline_and_nothing_of_others(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/")
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "font-src", "connect-src"):
        assert policy[kind] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", page.text)
    assert "microphone=(self)" in page.headers["Permissions-Policy"]
    assert page.headers["Cache-Control"] == "no-cache"


async def test_files_of_another_version_and_outside_are_not_sent(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/")).text
    found = re.search(r"studio/(\w+)/js/app\.js", page)
    assert found
    for path in ("other/js/app.js", f"{found[1]}/js/none.js", f"{found[1]}/../routes.py",
                 f"{found[1]}/%2e%2e/routes.py", f"{found[1]}/studio.html"):  # fmt: skip
        answer = await client.get(f"/studio/{path}", follow_redirects=True)
        assert answer.status_code == 404


async def test_without_the_page_there_is_nothing(tmp_path: Path) -> None:
    door = Door(tmp_path, has_page=False, INGRESS_API_KEY=KEY)
    async with serving(door.app) as somebody:
        assert (await somebody.get("/")).status_code == 401
        for path in ("/", "/studio/x/js/app.js"):
            answer = await somebody.get(path, headers={"X-Internal-API-Key": KEY})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    door.registry.close()


def test_files_of_others_are_as_published_and_have_their_licence() -> None:
    folder = HERE / "vendor"
    rows = re.findall(r"^\| `([^`]+)` .*`([\w.-]+)` \| `(\w{64})` \|$",
                      (folder / "README.md").read_text(), re.MULTILINE)  # fmt: skip
    for name, licence, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert len((folder / licence).read_text()) > 1000
    known = {name for name, *_ in rows} | {licence for _, licence, _ in rows} | {"README.md"}
    assert {file.name for file in folder.iterdir()} == known
