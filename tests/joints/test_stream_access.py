"""Streams at the ingress' own routes on a socket: who may watch, and what an answer says if nobody
can.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from serve_app.contract.outcomes import Failure, Phase, Progress, Success
from serve_app.jobs.job import Job
from serve_app.streams.streams import Stream, Streams
from tests.hostile.test_requests import MINIMAL
from tests.joints.job_door import Door, serving

KEY = "callers-key-one"
KEYED = {"X-Internal-API-Key": KEY}
# An id may contain anything that a path may.
JOB = "show 1/part?2"
PATH = "/v1/avatar/jobs/show%201%2Fpart%3F2"
FRAGMENT = bytes(range(256)) * 8


@contextlib.asynccontextmanager
async def watchable(folder: Path) -> AsyncIterator[tuple[Door, httpx.AsyncClient, Streams]]:
    """Serve an ingress with streams, which a sweep removes once they are over."""
    door = Door(folder, INGRESS_API_KEY=KEY)
    streams = Streams(folder / "work" / "streams", keep_s=60.0, max_bytes=0)
    links = replace(door.services.links, has_stream=streams.has)
    door.change(streams=streams, links=links)
    try:
        async with serving(door.app) as client:
            yield door, client, streams
    finally:
        door.registry.close()


async def submitted(client: httpx.AsyncClient) -> None:
    sent = {name: value for name, value in MINIMAL.items() if name != "musetalk_job_id"}
    body = sent | {"musetalk_job_id": JOB}
    assert (await client.post("/v1/avatar/jobs", json=body, headers=KEYED)).status_code == 202


def taken(door: Door) -> Job:
    job = door.registry.take(lease_s=60, max_attempts=3)
    assert job is not None
    return job


def streamed(streams: Streams, job: Job) -> Stream:
    """Begin the stream of a job, with one fragment."""
    assert job.attempt_id is not None
    stream = streams.begin(job.id, job.number, job.attempt_id, Fraction(25), Fraction(2))
    stream.put_init(b"init")
    stream.put(FRAGMENT, 50)
    return stream


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    body: dict[str, Any] = (await client.get(PATH, headers=KEYED)).json()
    return body


async def code_of(client: httpx.AsyncClient, url: str) -> tuple[int, str]:
    answer = await client.get(url, headers=KEYED)
    return answer.status_code, answer.json()["code"]


async def test_a_stream_is_opened_by_its_link_or_the_key_only(tmp_path):
    async with watchable(tmp_path) as (door, client, streams):
        await submitted(client)
        job = taken(door)
        assert (await shown(client))["stream_url"] is None
        streamed(streams, job)
        link = (await shown(client))["stream_url"]
        assert link.startswith(
            f"{client.base_url}{PATH}/stream.m3u8?number=1&expires=".replace("//v1", "/v1")
        )
        assert (await client.get(f"{PATH}/stream.m3u8")).status_code == 401
        answer = await client.get(link)
        assert answer.headers["content-type"].startswith("application/vnd.apple.mpegurl")
        assert answer.headers["cache-control"] == "no-cache"
        # The link to the playlist opens all that the playlist names.
        uris = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
        parts = [urljoin(link, uri) for uri in uris]
        assert [(await client.get(part)).content for part in parts] == [FRAGMENT]
        bare = parts[0].partition("?")[0]
        assert (await client.get(bare)).status_code == 401
        assert (await client.get(bare, headers=KEYED)).content == FRAGMENT
        other = link.replace("part%3F2", "part%3F3")
        assert (await client.get(other)).json()["code"] == "link_wrong"


async def test_head_and_ranges_work_and_the_key_needs_no_link(tmp_path):
    async with watchable(tmp_path) as (door, client, streams):
        await submitted(client)
        streamed(streams, taken(door))
        playlist, part = f"{PATH}/stream.m3u8", f"{PATH}/stream/1/0.m4s"
        whole = await client.get(playlist, headers=KEYED)
        assert "stream/1/0.m4s\n" in whole.text and "signature" not in whole.text
        head = await client.head(playlist, headers=KEYED)
        assert head.headers["content-length"] == str(len(whole.content)) and head.content == b""
        head = await client.head(part, headers=KEYED)
        assert head.headers["content-length"] == str(len(FRAGMENT))
        assert head.headers["content-type"] == "video/mp4"
        some = await client.get(part, headers={**KEYED, "Range": "bytes=3-5"})
        assert (some.status_code, some.content) == (206, FRAGMENT[3:6])


async def test_what_cannot_be_watched_says_why(tmp_path):
    async with watchable(tmp_path) as (door, client, streams):
        playlist = f"{PATH}/stream.m3u8"
        assert await code_of(client, playlist) == (404, "job_not_found")
        await submitted(client)
        assert await code_of(client, playlist) == (404, "stream_not_ready")
        early = await client.get(playlist, headers=KEYED)
        assert early.headers["retry-after"] == "1" and early.json()["retryable"] is True
        job = taken(door)
        assert await code_of(client, playlist) == (404, "stream_not_ready")
        stream = streamed(streams, job)
        assert await code_of(client, f"{PATH}/stream/1/1.m4s") == (410, "stream_gone")
        assert await code_of(client, f"{playlist}?number=7") == (410, "stream_gone")
        part = stream.file("0.m4s")
        part.unlink()  # by somebody who cleans up
        assert await code_of(client, f"{PATH}/stream/1/0.m4s") == (410, "stream_gone")
        assert door.registry.finish(job, Success("/files/x.mp4", {}), Progress(Phase.COMPLETED, 1))
        assert (await shown(client))["stream_url"] is not None
        streams.end(stream)
        streams.sweep()
        assert await code_of(client, playlist) == (410, "stream_gone")
        assert (await shown(client))["stream_url"] is None


async def test_a_job_that_is_started_again_is_streamed_from_its_beginning(tmp_path):
    """Pieces of two attempts may differ, so they never come in one playlist."""
    async with watchable(tmp_path) as (door, client, streams):
        await submitted(client)
        job = taken(door)
        streams.end(streamed(streams, job))
        first = (await shown(client))["stream_url"]
        failed = Failure("processing_error", "No.", "stage_failed", "inference", True, 500)
        assert door.registry.finish(job, failed, Progress(Phase.FAILED, 0.5))
        assert (await client.get(first)).text.endswith("#EXT-X-ENDLIST\n")
        assert (await client.post(f"{PATH}/retry", headers=KEYED)).status_code == 200
        assert (await shown(client))["stream_url"] is None
        again = taken(door)
        assert await code_of(client, f"{PATH}/stream.m3u8") == (404, "stream_not_ready")
        streamed(streams, again)
        second = (await shown(client))["stream_url"]
        assert "number=2" in second and "stream/2/0.m4s" in (await client.get(second)).text
        assert (await client.get(first)).json()["code"] == "stream_gone"


async def test_a_worker_may_make_no_streams(tmp_path):
    async with watchable(tmp_path) as (door, client, _):
        door.change(streams=None)
        await submitted(client)
        assert await code_of(client, f"{PATH}/stream.m3u8") == (409, "streams_off")
