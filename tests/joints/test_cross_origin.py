"""Pages of other sites: which may read answers, over a real socket and in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import HTMLResponse

from serve_app.api.job_runner import JobRunner
from serve_app.config.environment import EnvironmentInvalid, read_environment
from serve_app.config.origins import origin_of
from serve_app.config.settings import AppArgs, cors_origins
from serve_app.gate.callers import CallerRules
from serve_app.gate.cross_origin import CrossOrigin
from serve_app.gate.middleware import Gate, GateLimits
from tests.browser import chromium_path
from tests.hostile.edge import PATIENT, Inner
from tests.joints.job_door import Door, Graph, body, serving

KEY = "callers-key-one"
JOBS = "/v1/avatar/jobs"
APP = "https://app.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-internal-api-key",
}


@contextlib.asynccontextmanager
async def opened(
    folder: Path, graph: Graph | None = None, **environment: str
) -> AsyncIterator[tuple[Door, httpx.AsyncClient]]:
    door = Door(folder, graph, **environment)
    try:
        async with serving(door.app) as client:
            yield door, client
    finally:
        door.registry.close()


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name.startswith("access-control")
    }


async def test_no_page_of_another_site_may_read_anything_by_default(tmp_path: Path) -> None:
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (_, client):
        for origin in (APP, "http://localhost:3000", "null"):
            sent = {"Origin": origin, "X-Internal-API-Key": KEY}
            preflight = await client.options(JOBS, headers=PREFLIGHT | {"Origin": origin})
            assert preflight.status_code == 401
            for answer in (preflight, await client.get(JOBS, headers=sent)):
                assert cors_headers(answer) == {} and "vary" not in answer.headers


async def test_a_page_of_an_allowed_site_may_call_with_the_key_and_read_errors(
    tmp_path: Path,
) -> None:
    """The preflight carries no key, and a rejection has to be readable."""
    environment = {"INGRESS_API_KEY": KEY, "LIPSYNC_CORS_ORIGINS": f"{APP},http://localhost:3000"}
    async with opened(tmp_path, **environment) as (_, client):
        preflight = await client.options(JOBS, headers=PREFLIGHT | {"Origin": APP})
        assert (preflight.status_code, preflight.content) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "X-Internal-API-Key" in preflight.headers["access-control-allow-headers"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in preflight.headers
        without = await client.get(JOBS, headers={"Origin": APP})
        missing = await client.get("/nothing", headers={"Origin": APP, "X-Internal-API-Key": KEY})
        made = await client.post(
            JOBS, json=body(), headers={"Origin": APP, "X-Internal-API-Key": KEY}
        )
        for answer, status in ((without, 401), (missing, 404), (made, 202)):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == APP
            assert answer.headers["vary"] == "Origin"
            assert "Location" in answer.headers["access-control-expose-headers"]
        other = {"Origin": "https://app.example.evil", "X-Internal-API-Key": KEY}
        refused = await client.options(JOBS, headers=PREFLIGHT | other)
        for answer in (await client.get(JOBS, headers=other), refused):
            assert cors_headers(answer) == {} and answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("allowed", [APP, "*"])
async def test_an_allowed_site_is_no_caller_of_this_machine(tmp_path: Path, allowed: str) -> None:
    """Without a key, programs on this machine may call; a page of a site may not."""
    async with opened(tmp_path, LIPSYNC_CORS_ORIGINS=allowed) as (door, client):
        refused = await client.post(JOBS, json=body(), headers={"Origin": APP})
        assert (refused.status_code, refused.json()["code"]) == (403, "local_callers_only")
        assert refused.headers["access-control-allow-origin"] == allowed
        assert door.registry.page(None, 10).jobs == ()
        local = await client.post(JOBS, json=body(), headers={"Origin": "http://localhost:3000"})
        assert local.status_code == 202
        assert (allowed == "*") == bool(cors_headers(local))


async def test_both_gates_together_say_it_once(tmp_path: Path) -> None:
    """In Serve's proxy another gate is in front, which answers preflights of its own."""
    door = Door(tmp_path, INGRESS_API_KEY=KEY, LIPSYNC_CORS_ORIGINS=APP)
    rules, origins = CallerRules(ingress_api_key=KEY), CrossOrigin([APP])
    proxy = Gate(door.app, rules, PATIENT, cross_origin=origins, is_proxy=True)
    (tmp_path / "results" / "a.mp4").write_bytes(b"a video")
    async with serving(proxy) as client:
        sent = {"Origin": APP, "X-Internal-API-Key": KEY, "Range": "bytes=2-4"}
        for path, status in (("/hc", 200), (JOBS, 200), ("/files/a.mp4", 206), ("/files/b", 404)):
            answer = await client.get(path, headers=sent)
            assert answer.status_code == status
            assert answer.headers.get_list("access-control-allow-origin") == [APP]
            assert answer.headers.get_list("vary") == ["Origin"]
        assert (await client.options(JOBS, headers=PREFLIGHT | {"Origin": APP})).status_code == 204
    door.registry.close()


async def test_what_the_proxy_itself_answers_can_be_read_too() -> None:
    limits = GateLimits(first_probe_s=0.05)
    gate = Gate(Inner("absent"), CallerRules(), limits, cross_origin=CrossOrigin(["*"]),
                is_proxy=True)  # fmt: skip
    async with serving(gate) as client:
        answer = await client.get(JOBS, headers={"Origin": "http://localhost:1"})
        assert (answer.status_code, answer.json()["code"]) == (503, "starting")
        assert answer.headers["access-control-allow-origin"] == "*"


# --- the configuration ----------------------------------------------------------------------------


def test_origins_come_from_the_configuration_and_the_environment() -> None:
    document = {"pools": [{"name": "cpu"}], "http": {"cors_origins": ["HTTPS://App.Example:443/"]}}
    args = AppArgs.model_validate(document)
    env = read_environment({"LIPSYNC_CORS_ORIGINS": "http://localhost:3000, https://app.example"})
    assert cors_origins(args, env) == ("http://localhost:3000", APP)
    for wrong in ("app.example", "https://app.example/path", "https://", "https://a b", "null"):
        with pytest.raises(ValueError, match="is no origin"):
            origin_of(wrong)
    with pytest.raises(EnvironmentInvalid, match=r"LIPSYNC_CORS_ORIGINS .* is no origin"):
        read_environment({"LIPSYNC_CORS_ORIGINS": "app.example"})


# --- a browser ------------------------------------------------------------------------------------

STORY = """async ([base, key]) => {
  const headers = {"X-Internal-API-Key": key, "Content-Type": "application/json"};
  const wrong = await fetch(base + "/v1/avatar/jobs", {headers: {"X-Internal-API-Key": "no"}});
  const made = await fetch(base + "/v1/avatar/jobs", {
    method: "POST", headers: {...headers, "Idempotency-Key": "one"}, body: JSON.stringify({
      video_url: "https://h.example/v.mp4", audio_url: "https://h.example/a.wav"}),
  });
  const location = base + made.headers.get("Location");
  const events = await (await fetch(location + "/events", {headers})).text();
  const job = await (await fetch(location, {headers})).json();
  const file = base + "/files/" + job.id + ".mp4";
  const head = await fetch(file, {method: "HEAD", headers});
  const part = await fetch(file, {headers: {...headers, "Range": "bytes=2-4"}});
  return {
    wrong: [wrong.status, (await wrong.json()).code], made: made.status, status: job.status,
    ended: events.includes("event: end"), length: head.headers.get("Content-Length"),
    part: [part.status, part.headers.get("Content-Range"), await part.text()],
  };
}"""
REFUSED = """async ([base, key]) => {
  try {
    await fetch(base + "/v1/avatar/jobs", {headers: {"X-Internal-API-Key": key}});
    return "answered";
  } catch (error) { return error.name; }
}"""


@pytest.mark.slow
@pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed")
async def test_a_page_of_an_allowed_site_runs_a_job_in_a_browser(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from playwright.async_api import async_playwright
    (tmp_path / "results").mkdir()
    page_of = HTMLResponse("<title>A page of another site</title>")
    async with serving(page_of) as allowed, serving(page_of) as other:
        origin = str(allowed.base_url).rstrip("/")
        environment = {"INGRESS_API_KEY": KEY, "LIPSYNC_CORS_ORIGINS": origin}
        async with (
            opened(tmp_path, Graph(tmp_path / "results"), **environment) as (door, client),
            async_playwright() as playwright,
        ):
            runner = JobRunner(door.services, lambda slot: runner.run_next(slot), fetch_ahead=1)
            runner.start()
            browser = await playwright.chromium.launch(
                executable_path=chromium_path(), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            arguments = [str(client.base_url).rstrip("/"), KEY]
            page = await browser.new_page()
            await page.goto(origin)
            async with asyncio.timeout(60):
                told: dict[str, Any] = await page.evaluate(STORY, arguments)
                await page.goto(str(other.base_url))
                assert await page.evaluate(REFUSED, arguments) == "TypeError"
            await browser.close()
            await runner.drain()
            await runner.aclose()
    assert told == {
        "wrong": [403, "key_wrong"],
        "made": 202,
        "status": "succeeded",
        "ended": True,
        "length": "7",
        "part": [206, "bytes 2-4/7", "vid"],
    }
