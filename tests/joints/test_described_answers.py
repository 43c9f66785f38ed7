"""The document of the API, and whether the routes answer as it says, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.settings import QueueSettings
from serve_app.jobs.service import JobTiming
from serve_app.jobs.state_file import StateTiming
from tests.described import Document, ingress_document
from tests.joints.job_door import Door, Graph, body, lock_held, serving
from tests.joints.test_avatar_api import ONE, TWO, keep

KEY, TOKEN = "callers-key-one", "workers-token"
JOBS, AVATARS = "/v1/avatar/jobs", "/v1/avatars"
OPEN = {"GET /hc", "GET /health"}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    (tmp_path / "results").mkdir()
    queue = QueueSettings(max_queued_jobs=2)
    graph = Graph(tmp_path / "results")
    timing = JobTiming(state=StateTiming(busy_s=0.05, queued_s=30.0))
    keys = {"INGRESS_API_KEY": KEY, "WORKER_TOKEN": TOKEN}
    door = Door(tmp_path, graph, queue, timing=timing, **keys)
    yield door
    door.registry.close()


@contextlib.asynccontextmanager
async def checked(door: Door) -> AsyncIterator[tuple[httpx.AsyncClient, Document]]:
    """A client, of which every answer is compared with the document."""
    document = ingress_document()

    async def check(answer: httpx.Response) -> None:
        await answer.aread()
        document.check(answer)

    async with serving(door.app, **{"X-Internal-API-Key": KEY}) as client:
        client.event_hooks["response"] = [check]
        yield client, document


# --- the document ---------------------------------------------------------------------------------


def test_every_route_says_what_it_answers() -> None:
    """A generated client has a type for every answer, and a name for every route."""
    document = ingress_document()
    described = {tag["name"] for tag in document.whole["tags"]}
    names = [operation["operationId"] for _, operation in document.operations()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)
    used = set()
    for name, operation in document.operations():
        used |= set(operation["tags"])
        assert operation["summary"] and operation["description"], name
        statuses = {int(status) for status in operation["responses"]}
        assert any(status < 300 for status in statuses), name
        assert {500, 503} <= statuses, name
        assert {401, 403, 429} <= statuses or name in OPEN, name
        sent = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert sent is None or "$ref" in str(sent["schema"]), name
        takes = {408, 413, 422} if name.startswith(("POST", "PUT", "PATCH")) else {400}
        assert takes <= statuses, name
        for status, answer in operation["responses"].items():
            assert answer["description"], (name, status)
            text = str(answer.get("content", "no content is named"))
            assert "$ref" in text or "application/json" not in text or "files" in name, name
            is_state = name in OPEN and status == "503"
            if int(status) >= 400 and not is_state:
                assert "#/components/schemas/Problem" in text, (name, status)
            if status in ("429", "503") and not is_state and "preflight" not in name:
                assert "Retry-After" in answer["headers"], (name, status)
    assert used == described


def test_every_example_is_what_its_schema_says() -> None:
    document = ingress_document()
    examples = list(document.examples())
    assert {place for place, _, _ in examples} >= {"Job", "Problem", "JobCreate", "JobRequest"}
    for place, schema, example in examples:
        assert document.faults(schema, example) == [], place


def test_every_answer_of_the_document_has_an_example() -> None:
    document = ingress_document()
    schemas = document.whole["components"]["schemas"]
    for name, operation in document.operations():
        for status, answer in operation["responses"].items():
            found = answer.get("content", {}).get("application/json", {}).get("schema", {})
            if "$ref" in found:
                named = found["$ref"].rpartition("/")[2]
                assert schemas[named].get("examples"), (name, status, named)


# --- answers --------------------------------------------------------------------------------------


async def test_jobs_are_answered_as_the_document_says(door: Door) -> None:
    async with checked(door) as (client, document):
        for path in ("/hc", "/health", JOBS):
            assert (await client.get(path)).status_code == 200
        made = await client.post(JOBS, json=body("a b/c", metadata={"x": 1.5, "y": None}))
        assert made.status_code == 202
        other = body("a b/c", video_url="https://h.example/other.mp4")
        assert (await client.post(JOBS, json=other)).status_code == 409
        assert (await client.get(made.headers["Location"])).json()["status"] == "queued"
        assert (await client.post(JOBS, json={"x": 1})).status_code == 422
        await client.post(JOBS, json=body("d", resolution="641x361"))
        assert (await client.post(JOBS, json=body("e"))).status_code == 429
        assert (await client.post(f"{JOBS}/d/retry")).status_code == 409
        assert (await client.delete(f"{JOBS}/d")).status_code == 200
        assert (await client.delete(f"{JOBS}/d")).status_code == 409
        assert (await client.get(f"{JOBS}/d")).json()["failure"]["code"] == "cancelled"
        assert (await client.get(f"{JOBS}/d/events")).status_code == 200
        assert (await client.post(f"{JOBS}/d/retry")).status_code == 200
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/retry"), ("DELETE", "")):
            assert (await client.request(method, f"{JOBS}/none{path}")).status_code == 404
        assert (await client.get(f"{JOBS}?limit=0")).status_code == 422
        assert (await client.get(f"{JOBS}?limit=1")).json()["next_cursor"]
        drained = await client.post("/admin/drain")
        assert (drained.json()["status"], drained.json()["queued"]) == ("draining", 2)
    assert len(document.checked) == 19


async def test_a_finished_job_is_answered_as_the_document_says(door: Door) -> None:
    async with checked(door) as (client, document):
        waiting = asyncio.create_task(client.post("/generate", json=body(), timeout=60))
        while (job := await door.services.jobs.run_next()) is None:
            await asyncio.sleep(0)
        assert job.id == "a" and (await waiting).status_code == 200
        assert (await client.get(f"{JOBS}/a")).json()["status"] == "succeeded"
        link = "/files/a.mp4"
        assert (await client.get(link)).content == b"a video"
        assert (await client.head(link)).status_code == 200
        part = await client.get(link, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"vid")
        assert (await client.get("/files/none.mp4")).status_code == 404
        assert (await client.post("/generate", json={})).status_code == 422
    assert {("GET /files/{key}", 206), ("POST /generate", 200)} <= document.checked


async def test_avatars_are_answered_as_the_document_says(door: Door, tmp_path: Path) -> None:
    keep(tmp_path, ONE, with_video=False)
    keep(tmp_path, TWO, with_video=True)
    async with checked(door) as (client, document):
        sent = {"video_url": "https://h.example/v.mp4", "duration_s": 2}
        assert (await client.post(AVATARS, json=sent)).status_code == 202
        assert len((await client.get(AVATARS)).json()["avatars"]) == 2
        assert (await client.get(f"{AVATARS}/{ONE}")).status_code == 200
        assert (await client.delete(f"{AVATARS}/{ONE}")).status_code == 200
        assert (await client.delete(f"{AVATARS}/{ONE}")).status_code == 404
        named = {"avatar_id": ONE, "audio_url": "https://h.example/a.wav"}
        assert (await client.post(JOBS, json=named)).status_code == 404
    assert len(document.checked) == 6


async def test_rejections_are_what_the_document_says(door: Door) -> None:
    async with checked(door) as (client, document):
        names = [name.split() for name, _ in document.operations()]
        for method, path in names:
            sent: dict[str, Any] = {"json": {}} if method == "POST" else {}
            target = re.sub(r"{.*?}", "x", path)
            for headers in ({"X-Internal-API-Key": ""}, {"X-Internal-API-Key": "wrong"}):
                answer = await client.request(method, target, headers=headers, **sent)
                assert answer.status_code in (401, 403, 429) or f"{method} {path}" in OPEN
            if path.startswith("/v1/uploads"):
                continue  # bodies of these routes have limits of their own
            if method == "POST":
                n_bytes = 5_000_000 if "batches" in path else 70_000
                assert (await client.post(target, content=b"x" * n_bytes)).status_code == 413
            else:
                assert (await client.request(method, target, json={})).status_code == 400
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/v1/ping", headers=token)).status_code == 200
        assert (await client.get("/v1/preflight", headers=token)).status_code == 200
        with lock_held(door.path):
            assert (await client.post(JOBS, json=body())).status_code == 503
