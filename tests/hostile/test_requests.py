"""Hostile requests: the schema under fuzzing, and every kind of bad body at the real routes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musetalk_pipeline.options import JobOptions
from serve_app.api.job_runner import JobRunner
from serve_app.contract.outcomes import Phase, Progress, Success
from serve_app.contract.requests import JobRequest, Params
from tests.hostile.fuzz_request import GOOD, fuzz_one, mutate
from tests.joints.job_door import Door, serving
from tests.waiting import until_async

MINIMAL = {key: GOOD[key] for key in ("musetalk_job_id", "video_url", "audio_url")}
KEY = "internal-key-one"

# --- the schema -----------------------------------------------------------------------------------


def test_fuzzed_requests_are_checked_or_refused() -> None:
    """Three thousand mutations from a fixed seed; fuzz_request.py goes on for as long as asked."""
    chance = random.Random(20260301)
    accepted = sum(fuzz_one(mutate(chance)) for _ in range(3000))
    assert 100 < accepted < 2900  # both ways are tried


@given(st.binary(max_size=200))
def test_any_bytes_are_checked_or_refused(data: bytes) -> None:
    fuzz_one(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "x"]), JSON))
def test_any_values_are_checked_or_refused(changes: dict[str, Any]) -> None:
    fuzz_one(json.dumps({**GOOD, **changes}).encode())


def request(**changes: Any) -> JobRequest:
    return JobRequest.model_validate({**MINIMAL, **changes})


BAD_PARAMS = [
    {"crf": -1}, {"crf": 41}, {"crf": "x"}, {"crf": 18.5}, {"crf": None, "x": 1},
    {"preset": "placebo"}, {"preset": "fast; rm -rf /"}, {"fit": "stretch"},
    {"parsing_mode": "lips"}, {"extra_margin": -1}, {"extra_margin": 201}, {"bbox_shift": 51},
    {"bbox_shift": -51}, {"blur": -0.1}, {"blur": 0.6},
    {"blur": float("nan")}, {"blur": float("inf")}, {"audio_padding_left": 11},
    {"audio_padding_right": -1}, {"box_smoothing": 13}, {"left_cheek_width": 257},
    {"right_cheek_width": -1}, {"rest_in_silence": "perhaps"}, {"rest_in_silence": 2},
    {"window_placement": "late"}, {"fps": 0.5}, {"fps": 121}, {"fps": float("nan")},
    {"frame_rate": 25}, {"window_span": "steps"},
    {"faceless": "drop"}, {"edges": "keep"}, {"chunk_overlap_s": -1}, {"chunk_overlap_s": 30},
    {"unknown": 1}, {"__class__": "x"}, {"": 1}, [], "x", 1, None,
]  # fmt: skip


@pytest.mark.parametrize("params", BAD_PARAMS, ids=repr)
def test_options_out_of_bounds_are_refused(params: Any) -> None:
    with pytest.raises(ValidationError):
        request(params=params)


def test_options_left_out_take_the_deployments_defaults() -> None:
    assert request().options(JobOptions()) == JobOptions()
    chosen = request(params={"crf": 30, "box_smoothing": 2}, resolution="720p").options(
        JobOptions()
    )
    assert (chosen.encode.crf, chosen.face.box_smoothing, chosen.frame.resolution) == (
        30,
        2,
        "720p",
    )
    assert chosen.mask == JobOptions().mask


def test_addresses_are_not_in_the_repr() -> None:
    assert "very-secret" not in repr(request())


# --- the routes, over a real socket ---------------------------------------------------------------


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path, INGRESS_API_KEY=KEY)
    yield door
    door.registry.close()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-Internal-API-Key": KEY, "Content-Type": "application/json"}
    async with serving(door.app, **headers) as session:
        yield session


def text(**changes: Any) -> bytes:
    return json.dumps({**MINIMAL, **changes}).encode()


DEEP = 10_000  # all of these are within the limit on bodies, so that the parsers see them
BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no object": b"[]",
    "null": b"null",
    "a number": b"1",
    "a string": b'"x"',
    "not JSON": b"{",
    "trailing": text() + b"}",
    "two documents": text() * 2,
    "form data": b"musetalk_job_id=1&video_url=http://a",
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "bytes": bytes(range(256)),
    "UTF-16": json.dumps(MINIMAL).encode("utf-16")[:-1],
    "nulls": b"\x00" * 1000,
    "deep lists": b"[" * DEEP,
    "deep closed lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep params": text()[:-1] + b',"params":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "a huge number": text()[:-1] + b',"params":{"crf":' + b"9" * 60_000 + b"}}",
    "a huge exponent": text()[:-1] + b',"params":{"crf":1e99999999}}',
    "a huge string": text(video_url="http://a/" + "x" * 60_000),
    "a huge id": text(musetalk_job_id="x" * 257),
    "many keys": text(params={f"k{number}": number for number in range(4_000)}),
    "no id": json.dumps({k: v for k, v in MINIMAL.items() if k != "musetalk_job_id"}).encode(),
    "no video": json.dumps({k: v for k, v in MINIMAL.items() if k != "video_url"}).encode(),
    "no audio": json.dumps({k: v for k, v in MINIMAL.items() if k != "audio_url"}).encode(),
    "empty id": text(musetalk_job_id=""),
    "empty video": text(video_url=""),
    "id is null": text(musetalk_job_id=None),
    "id is a number": text(musetalk_job_id=7),
    "id is a list": text(musetalk_job_id=["x"]),
    "id is half a character": text(musetalk_job_id="\ud800"),
    "video is half a character": text(video_url="http://a/\udfff"),
    "video is an object": text(video_url={"url": "http://a"}),
    "long resolution": text(resolution="7" * 33),
    "resolution is a number": text(resolution=720),
    "aspect ratio is a list": text(aspect_ratio=[9, 16]),
    "params is a list": text(params=[]),
    "params is null": text(params=None),
    "params is unknown": text(params={"shell": "$(id)"}),
    "params has half a character": text(params={"\ud800": 1}),
    "params is infinite": text(params={"blur": float("inf")}),
    "params is no number": text(params={"blur": float("nan")}),
    "params is out of bounds": text(params={"crf": 99}),
    "bad encoding": text().replace(b"job-123", b"job\xff\xfe"),
}


# What `POST /generate` takes, with a sentence: its callers have always sent what they liked.
TAKEN_LENIENTLY = {
    "a huge exponent", "many keys", "id is a number", "long resolution", "resolution is a number",
    "aspect ratio is a list", "params is a list", "params is null", "params is unknown",
    "params has half a character", "params is infinite", "params is no number",
    "params is out of bounds",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bad_bodies_are_answered_in_the_contracts_shape(
    client: httpx.AsyncClient, door: Door, name: str
) -> None:
    for path in ("/generate", "/v1/avatar/jobs"):
        if name in ("no id", "id is null") and path != "/generate":
            continue  # there an id is made
        if name in TAKEN_LENIENTLY and path == "/generate":
            continue
        answer = await client.post(path, content=BAD_BODIES[name])
        assert answer.status_code == 422, answer.text[:300]
        body = answer.json()
        # The media were not even looked at.
        assert body["status"] == "failed" and body["error_type"] == "unknown_error"
        assert body["code"] in ("invalid_request", "body_too_large") and body["retryable"] is False
        assert body["hint"] and len(answer.content) < 2000
        assert body["stage"] == "validation" and "stack_trace" not in body
        assert 10 < len(body["error_message"]) < 1000
        assert "very-secret" not in answer.text
    assert door.registry.page(None, 10).jobs == ()
    good = await client.post("/v1/avatar/jobs", content=text())  # and the next good one is taken
    assert good.status_code == 202, good.text


async def test_a_large_body_is_refused_before_it_is_parsed(
    client: httpx.AsyncClient, door: Door
) -> None:
    """Mend 4.3, at the ingress too: a proxy may not have been told of the gate. 413, not 422 as
    before: nobody has looked at what it says.
    """
    body = b"[" * (65536 + 1)
    answer = await client.post("/v1/avatar/jobs", content=body)
    assert answer.status_code == 413 and answer.json()["code"] == "body_too_large"
    assert (await client.post("/generate", content=body[1:])).status_code == 422
    assert door.registry.page(None, 10).jobs == ()


@pytest.mark.parametrize("path", ["/v1/avatar/jobs", "/v1/avatar/jobs/x", "/files/x.mp4", "/hc"])
async def test_a_get_with_a_body_is_refused(client: httpx.AsyncClient, path: str) -> None:
    """Mend 4.6."""
    answer = await client.request("GET", path, content=b"x" * 100_000)
    assert answer.status_code == 400 and answer.json()["code"] == "body_not_allowed"


async def test_head_of_files(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """Mend 1.17."""
    (tmp_path / "results" / "x.mp4").write_bytes(b"video")
    answer = await client.head("/files/x.mp4")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "5"
    assert (await client.head("/files/y.mp4")).status_code == 404


@pytest.mark.parametrize("name", sorted(TAKEN_LENIENTLY))
async def test_what_generate_does_not_understand_is_said_and_left_out(
    client: httpx.AsyncClient, door: Door, name: str
) -> None:
    """Mend 1.9, over HTTP: the job is entered, and its answer says what was not understood."""
    call = asyncio.create_task(client.post("/generate", content=BAD_BODIES[name]))
    await until_async(
        lambda: door.registry.page(None, 10).jobs or call.done(), "the job was not entered"
    )
    assert not call.done(), call.result().text
    [job] = door.registry.page(None, 10).jobs
    assert job.request.params == Params()
    started = door.registry.take(lease_s=60, max_attempts=1)
    assert started is not None
    done = Progress(Phase.COMPLETED, 1.0)
    assert door.registry.finish(started, Success("/files/x.mp4", {"total_time": 1.0}), done)
    door.services.jobs._changes.announce(started.id)
    answer = await call
    assert answer.status_code == 200 and answer.json()["error"] is None
    # A number as an id, and `null`, are understood.
    assert bool(answer.json()["warnings"]) == (name not in ("id is a number", "params is null"))
    assert len(answer.content) < 4000


BAD_METADATA = [
    {"x": float("nan")}, {"x": float("inf")}, {"x": [1]}, {"x": {}}, {"\ud800": 1}, {"x": "\ud800"},
    {f"k{n}": n for n in range(65)}, {f"k{n}": "x" * 4000 for n in range(5)}, {"x" * 5000: 1}, [],
    "x",
]  # fmt: skip


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=lambda value: ascii(value)[:30])
async def test_metadata_that_cannot_be_given_back_is_refused(
    client: httpx.AsyncClient, metadata: Any
) -> None:
    answer = await client.post("/v1/avatar/jobs", content=text(metadata=metadata))
    assert answer.status_code == 422, answer.text[:300]


ODD_IDS = ["../../etc/passwd", "a/b", "a b", "$(reboot)", "';DROP TABLE jobs;--", "..", ".", "\0",
           "x\r\nSet-Cookie: a=b", "ü", "😀" * 60, "\u202egnp.exe", "%2e%2e%2f", "<b>", "~", "-rf",
           "a" * 256]  # fmt: skip


@pytest.mark.parametrize("job_id", ODD_IDS, ids=ascii)
async def test_odd_job_ids_are_only_ever_data(
    client: httpx.AsyncClient, door: Door, job_id: str, tmp_path: Path
) -> None:
    """Taken, stored and given back unchanged; in no header, no path, no statement."""
    before = {entry.name for entry in tmp_path.rglob("*")}
    answer = await client.post("/v1/avatar/jobs", content=text(musetalk_job_id=job_id))
    assert answer.status_code == 202, answer.text
    assert answer.json()["id"] == job_id
    assert "set-cookie" not in answer.headers
    (job,) = door.registry.page(None, 10).jobs
    assert job.id == job_id
    assert {entry.name for entry in tmp_path.rglob("*")} - before <= {
        "jobs.sqlite3-wal", "jobs.sqlite3-shm",
    }  # fmt: skip


async def test_signatures_do_not_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/avatar/jobs", content=text())
    shown = await client.get(f"/v1/avatar/jobs/{answer.json()['id']}")
    listed = await client.get("/v1/avatar/jobs")
    for each in (answer, shown, listed):
        assert each.status_code in (200, 202) and "very-secret" not in each.text


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("", 403), ("wrong", 403), (KEY + "x", 403), ("\xfc", 403)]
)
async def test_without_the_key_nothing_is_read(
    client: httpx.AsyncClient, door: Door, key: str | None, status: int
) -> None:
    del client.headers["X-Internal-API-Key"]
    headers = {} if key is None else {b"X-Internal-API-Key": key.encode("latin-1")}
    for path in ("/generate", "/v1/avatar/jobs"):
        answer = await client.post(path, content=text(), headers=headers)
        assert answer.status_code == status
        assert KEY not in answer.text
    assert door.registry.page(None, 10).jobs == ()


@pytest.mark.parametrize(
    "key", ["../jobs.sqlite3", "%2e%2e/jobs.sqlite3", "..%2fjobs.sqlite3", "/etc/passwd", "%00",
            "x.mp4", "jobs.sqlite3", "....//jobs.sqlite3", "a" * 3000 + ".mp4", "%ff.mp4"]
)  # fmt: skip
async def test_files_gives_outputs_only(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.get(f"/files/{key}")
    assert answer.status_code == 404 and b"SQLite" not in answer.content


async def test_a_fuzzed_ingress_never_answers_500(client: httpx.AsyncClient) -> None:
    chance = random.Random(5)
    seen: set[int] = set()
    for number in range(400):
        data = mutate(chance).replace(b'"job-123"', b'"job-%d"' % number)
        answer = await client.post("/v1/avatar/jobs", content=data)
        seen.add(answer.status_code)
        assert answer.status_code in (202, 409, 422), (answer.status_code, data)
    assert {202, 422} <= seen
    assert (await client.get("/v1/avatar/jobs")).status_code == 200


# --- stopping -------------------------------------------------------------------------------------


async def test_a_stopping_worker_takes_no_new_job(door: Door, client: httpx.AsyncClient) -> None:
    """Mend 2.8: callers are sent elsewhere while the jobs that run are finished."""

    async def nothing(slot: int) -> None:
        """No call of a slot comes here."""

    await JobRunner(door.services, nothing).drain()
    for path, body in (("/generate", text()), ("/v1/avatar/jobs", text())):
        answer = await client.post(path, content=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30"), path
    assert door.registry.page(None, 10).jobs == ()
    ready = await client.get("/hc")
    assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
