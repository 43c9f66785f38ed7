"""The composed ingress and its routes without Ray, by themselves and in other applications."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Scope

from serve_app.api.application import add_routes
from serve_app.api.event_stream import event_stream
from serve_app.api.job_runner import JobRunner
from serve_app.api.routers import files, jobs
from serve_app.api.services import Availability
from serve_app.gate.access_control import GuessLimiter
from serve_app.jobs.job import Followed
from serve_app.jobs.service import JobService
from tests.joints.job_door import Door, Graph, Rig, Stages, body, job_door

KEY, TOKEN = "callers-key-one", "workers-token"
JOBS = "/v1/avatar/jobs"
HERE, ELSEWHERE = ("127.0.0.1", 40000), ("192.0.2.7", 40000)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """Takes jobs in, runs none, and wants a key or a token."""
    door = Door(tmp_path, INGRESS_API_KEY=KEY, WORKER_TOKEN=TOKEN)
    yield door
    door.registry.close()


@contextlib.asynccontextmanager
async def calling(
    app: ASGIApp, client: tuple[str, int] = HERE, **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application itself, as if from that peer."""
    transport = httpx.ASGITransport(app, client=client, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://worker.example", headers=headers
    ) as session:
        yield session


def keyed(**more: str) -> dict[str, str]:
    return {"X-Internal-API-Key": KEY, **more}


# --- composition ----------------------------------------------------------------------------------


async def test_the_composed_ingress_runs_jobs_without_ray(tmp_path: Path) -> None:
    """Routes, registry, slots, links and draining: only what draws the video is a double."""
    (tmp_path / "results").mkdir()
    door = Door(tmp_path, Graph(tmp_path / "results"))
    runner = JobRunner(door.services, lambda slot: runner.run_next(slot), fetch_ahead=1)
    runner.start()
    async with calling(door.app) as client:
        done = await client.post("/generate", json=body("one"), timeout=60)
        assert (done.status_code, done.json()["status"]) == (200, "success")
        await runner.drain()
        stopping = await client.post("/generate", json=body("two"))
        assert (stopping.status_code, stopping.json()["code"]) == (503, "stopping")
        assert (await client.get("/hc")).json() == {"status": "stopping"}
    await runner.aclose()
    door.registry.close()


async def test_a_worker_that_cannot_store_jobs_is_not_ready() -> None:
    """Mend 4.8: `/hc` is answered by this."""
    storing = [False, True]

    async def can_store() -> bool:
        return storing.pop(0)

    availability = Availability(Stages(), can_store)
    assert await availability.status() == "starting"
    assert await availability.status() == "ok"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/hc", 200), ("HEAD", "/hc", 200), ("GET", "/health", 200),
        ("GET", "/v1/ping", 200), ("GET", "/v1/preflight", 200), ("POST", JOBS, 202),
        ("GET", JOBS, 200), ("GET", f"{JOBS}/none", 404), ("GET", f"{JOBS}/none/events", 404),
        ("DELETE", f"{JOBS}/none", 404), ("POST", "/v1/avatar/preview", 422),
        ("POST", "/v1/estimate", 422),
        ("POST", "/generate", 422), ("GET", "/files/none.mp4", 404), ("HEAD", "/files/x.mp4", 404),
        ("POST", "/admin/drain", 200), ("GET", "/docs", 200), ("GET", "/nothing", 404),
    ],
)  # fmt: skip
async def test_every_route_is_there(door: Door, method: str, path: str, status: int) -> None:
    sent = {
        JOBS: body(),
        "/generate": {},
        "/v1/avatar/preview": {},
        "/v1/estimate": {},
        "/admin/drain": {},
    }
    async with calling(door.app, ELSEWHERE, **keyed()) as client:
        answer = await client.request(
            method, path, json=sent.get(path) if method == "POST" else None
        )
        assert answer.status_code == status, answer.text
        if method == "POST" and status == 202:
            location = answer.headers["Location"]
            assert (await client.get(location)).json()["id"] == answer.json()["id"]


# --- access ---------------------------------------------------------------------------------------


def operations(schema: dict[str, Any]) -> dict[str, list[dict[str, list[str]]]]:
    return {
        f"{method.upper()} {path}": operation.get("security", [])
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def test_the_documentation_says_what_each_route_needs(door: Door) -> None:
    """/docs shows a padlock at these, and "Authorize" fills the headers in."""
    schema = door.app.openapi()
    schemes = schema["components"]["securitySchemes"]
    assert (schemes["Key"]["in"], schemes["Key"]["name"]) == ("header", "X-Internal-API-Key")
    assert schemes["KeyAsBearer"]["scheme"] == schemes["WorkerToken"]["scheme"] == "bearer"
    needed = {name: {next(iter(one)) for one in some} for name, some in operations(schema).items()}
    assert needed.pop("GET /hc") == needed.pop("GET /health") == set()
    for path in ("/v1/ping", "/v1/preflight"):
        assert needed.pop(f"GET {path}") == {"WorkerToken", "Key"}
    stream = "GET /v1/avatar/jobs/{job_id}/stream"
    for name in ("GET /files/{key}", f"{stream}.m3u8", f"{stream}/{{number}}/{{name}}"):
        assert needed.pop(name) == {"SignedLink", "Key", "KeyAsBearer"}
    assert len(needed) >= 17 and set(map(frozenset, needed.values())) == {
        frozenset({"Key", "KeyAsBearer"})
    }


@pytest.mark.parametrize("peer", [HERE, ELSEWHERE], ids=["here", "elsewhere"])
@pytest.mark.parametrize(
    "environment",
    [{}, {"INGRESS_API_KEY": KEY}, {"INTERNAL_API_KEY": KEY, "WORKER_TOKEN": TOKEN},
     {"ALLOW_ANONYMOUS": "true", "WORKER_PING_PUBLIC": "true"}],
    ids=lambda variables: "+".join(variables) or "nothing",
)  # fmt: skip
async def test_routes_without_the_gate_are_guarded_as_with_it(
    tmp_path: Path, environment: dict[str, str], peer: tuple[str, int]
) -> None:
    door = Door(tmp_path, guesses=GuessLimiter(burst=10_000), **environment)
    bare = FastAPI()
    add_routes(bare, door.services)
    link = httpx.URL(door.services.links.for_notifications().link("/files/a.mp4")).raw_path.decode()
    targets = ["/hc", "/health", "/v1/ping", "/v1/preflight", JOBS, f"{JOBS}/x", "/files/a.mp4",
               link, f"{link}0", "/files/a.mp4?signature="]  # fmt: skip
    carried: list[dict[str, str]] = [
        {}, keyed(), {"X-Internal-API-Key": "wrong"}, {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"Basic {KEY}"},
        {"X-Forwarded-For": "127.0.0.1"}, {"Origin": "https://other.example"},
    ]  # fmt: skip
    async with calling(door.app, peer) as gated, calling(bare, peer) as direct:
        for target in targets:
            for headers in carried:
                answers = [await client.get(target, headers=headers) for client in (gated, direct)]
                told = [(one.status_code, one.json()) for one in answers]
                assert told[0] == told[1], (target, headers)
    door.registry.close()


# --- other applications ---------------------------------------------------------------------------


def other_application(door: Door) -> FastAPI:
    """An orchestrator, say, that has jobs and files of this worker among its own routes."""
    app = FastAPI()
    add_routes(app, door.services, [jobs.router, files.router], prefix="/worker")

    @app.get("/own")
    async def own() -> dict[str, str]:
        return {"whose": "the other application's"}

    app.mount("/whole", door.app)
    return app


async def test_routers_work_in_another_application(door: Door, tmp_path: Path) -> None:
    (tmp_path / "results" / "a.mp4").write_bytes(b"a video")
    async with calling(other_application(door), ELSEWHERE) as client:
        assert (await client.get("/own")).json() == {"whose": "the other application's"}
        assert (await client.get("/nothing")).json() == {"detail": "Not Found"}
        for prefix in ("/worker", "/whole"):
            refused = await client.post(f"{prefix}{JOBS}", json=body())
            assert (refused.status_code, refused.json()["code"]) == (401, "key_missing")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            entered = await client.post(f"{prefix}{JOBS}", json=body(), headers=keyed())
            assert entered.status_code == 202, entered.text
            assert entered.headers["Location"] == f"{prefix}{JOBS}/a"
            found = await client.get(entered.headers["Location"], headers=keyed())
            assert found.json()["status"] == "queued"
            other = {**body(), "video_url": "https://h.example/other.mp4"}
            conflict = await client.post(f"{prefix}{JOBS}", json=other, headers=keyed())
            assert (conflict.status_code, conflict.json()["code"]) == (409, "job_conflict")
            link = httpx.URL(door.services.links.for_notifications().link("/files/a.mp4"))
            path = f"{prefix}{link.raw_path.decode()}"
            assert (await client.get(path)).content == b"a video"
            assert (await client.get(path + "0")).json()["code"] == "link_wrong"
            assert (await client.get(f"{prefix}/files/a.mp4")).status_code == 401


# --- server-sent events ---------------------------------------------------------------------------


@dataclass
class Watched:
    """The job service, with the readers of events counted."""

    jobs: JobService
    n_states: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_endless: bool = False

    async def get(self, job_id: str) -> Any:
        return await self.jobs.get(job_id)

    async def follow(self, job_id: str, number: int) -> AsyncGenerator[Followed | None, None]:
        try:
            async for state in self.jobs.follow(job_id, number):
                yield state
                self.n_states += 1
                while self.is_endless and state is not None:
                    self.n_states += 1
                    yield Followed(state.job, state.events + await self._change())
        finally:
            self.ended.set()

    async def _change(self) -> tuple[Any, ...]:
        states = self.jobs.follow("done", 0)
        async with contextlib.aclosing(states):
            async for state in states:
                assert state is not None
                return state.events[:1]
        raise AssertionError


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with job_door(tmp_path) as rig:
        yield rig


async def test_events_can_be_read_again_from_the_last_one_received(rig: Rig) -> None:
    await rig.client.post(JOBS, json=body())
    await rig.service.run_next()
    whole = await rig.client.get(f"{JOBS}/a/events")
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert "no-store" in whole.headers["cache-control"]
    assert whole.headers["x-accel-buffering"] == "no"
    events = [dict(line.split(": ", 1) for line in one.splitlines())
              for one in whole.text.split("\n\n") if one]  # fmt: skip
    ids = [event["id"] for event in events if "id" in event]
    assert [event["event"] for event in events] == ["progress"] * len(ids) + ["end"]
    assert json.loads(events[-1]["data"])["status"] == "succeeded"
    later = await rig.client.get(f"{JOBS}/a/events", headers={"Last-Event-ID": ids[1]})
    assert f"id: {ids[1]}\n" not in later.text and f"id: {ids[2]}\n" in later.text
    assert "event: end" in later.text


async def test_a_quiet_stream_of_events_is_kept_open_by_comments() -> None:
    class Quiet:
        async def follow(self, *_: object) -> AsyncGenerator[None, None]:
            for _ in range(2):
                yield None

    for keep_alive_s, sent in ((0.0, [b": ping\n\n"] * 2), (60.0, [])):
        stream = event_stream(Quiet(), "a", 0, keep_alive_s=keep_alive_s)  # type: ignore[arg-type]
        assert [event async for event in stream] == sent


async def test_a_reader_of_events_that_disconnects_is_forgotten(rig: Rig) -> None:
    await rig.client.post(JOBS, json=body())
    watched = Watched(rig.service)
    rig.door.change(jobs=watched)
    async with rig.client.stream("GET", f"{JOBS}/a/events") as stream:
        async for line in stream.aiter_lines():
            assert line == "event: progress"
            break
        assert not watched.ended.is_set()
    await asyncio.wait_for(watched.ended.wait(), 30)


async def test_events_are_made_no_faster_than_they_are_read(rig: Rig) -> None:
    """Memory: a reader that stops reading holds up its own events, and few are made ahead."""
    await rig.client.post(JOBS, json=body("done"))
    await rig.service.run_next()
    await rig.client.post(JOBS, json=body())
    watched = Watched(rig.service, is_endless=True)
    rig.door.change(jobs=watched)
    leaves, is_held = asyncio.Event(), asyncio.Event()
    requests: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            is_held.set()
            await asyncio.Event().wait()  # this client never reads

    scope: Scope = {
        "type": "http", "method": "GET", "path": f"{JOBS}/a/events", "query_string": b"",
        "headers": [], "client": HERE, "root_path": "", "scheme": "http",
    }  # fmt: skip
    reading = asyncio.create_task(rig.door.app(scope, receive, send))
    await is_held.wait()
    for _ in range(20):  # turns of the registry, in which events would be made
        await rig.service.get("a")
    assert watched.n_states < 10
    leaves.set()
    await reading  # which is no error
    await asyncio.wait_for(watched.ended.wait(), 30)
