"""Uploads through both gates on real sockets: every way to send a file, and everything in its way.

Only what drives jobs is a double. The clients are raw sockets, httpx and curl.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.util.metrics import Counter as RayCounter
from ray.util.metrics import Gauge
from tusclient.client import TusClient

from serve_app.gate.access_control import AccessControl
from serve_app.gate.callers import CallerRules
from serve_app.gate.http_protocol import ConnectionLimits
from serve_app.gate.middleware import Gate, GateLimits
from serve_app.gate.upload_body import UploadLimits
from serve_app.gate.uploads import JOB_FORMS
from tests.hostile.edge import PATIENT, head, listening, raw, skip
from tests.joints.job_door import Door, Graph
from tests.waiting import until_async

PIECE = 10_000
LIMITS = replace(PATIENT, uploads=UploadLimits(piece_bytes=PIECE, writers=4), linger_s=0.2)
TUS = {"Tus-Resumable": "1.0.0"}
PIECE_TYPE = {"Content-Type": "application/offset+octet-stream"}
KEY = "the-key-of-callers"


@dataclass
class Desk:
    """The ingress behind the gate of a proxy, and a client in front of it."""

    door: Door
    graph: Graph
    client: httpx.AsyncClient
    port: int

    @property
    def stored(self) -> list[Path]:
        """The files in the folder of the uploads."""
        return sorted((self.door.path.parent / "uploads").iterdir())

    async def upload(self, content: bytes, name: str = "a.mp4") -> dict[str, Any]:
        """Upload a file as it is; what the answer says."""
        answer = await self.client.put(f"/v1/uploads/{name}", content=content)
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body


@asynccontextmanager
async def desk_of(folder: Path, limits: GateLimits = LIMITS, **env: str) -> AsyncIterator[Desk]:
    results = folder / "results"
    results.mkdir()
    graph = Graph(results)
    door = Door(folder, graph, **env)
    access = AccessControl(CallerRules(env.get("INGRESS_API_KEY"), allow_anonymous=True), None)
    gate = Gate(door.app, access, limits, is_proxy=True)
    try:
        async with (
            listening(gate) as port,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30
            ) as client,
        ):
            yield Desk(door, graph, client, port)
    finally:
        door.registry.close()


def is_free(data: Path) -> bool:
    """Whether no request writes to an upload."""
    with data.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path) as desk:
        yield desk


@pytest.fixture
def video(clip) -> bytes:
    content: bytes = clip().read_bytes()
    assert len(content) > 2 * PIECE, "several pieces"
    return content


@pytest.fixture
def sound(speech) -> bytes:
    content: bytes = speech(0.6).read_bytes()
    return content


# --- the ways to send a file ------------------------------------------------------------------


async def test_a_raw_put_stores_the_file_and_describes_it(desk: Desk, video: bytes) -> None:
    upload = await desk.upload(video, "My clip.mp4")
    assert upload["url"] == f"upload://{upload['id']}"
    assert (upload["kind"], upload["bytes"], upload["name"]) == ("video", len(video), "My clip.mp4")
    assert upload["width"] > 0 and upload["fps"] == 25 and upload["duration_s"] > 0
    assert upload["expires_at"] > upload["created_at"]
    known = await desk.client.get(f"/v1/uploads/{upload['id']}")
    assert known.json()["id"] == upload["id"]
    data = [path for path in desk.stored if path.suffix == ".data"]
    assert [path.read_bytes() for path in data] == [video]
    assert {path.stat().st_mode & 0o777 for path in desk.stored} == {0o600}


async def test_a_form_stores_the_same_file_once(desk: Desk, video: bytes) -> None:
    """A client that tries again leaves no second copy, and its address is the same."""
    first = await desk.upload(video)
    answer = await desk.client.post("/v1/uploads", files={"file": ("b.mov", video)})
    assert answer.status_code == 201
    assert answer.json()["url"] == first["url"]
    assert len(desk.stored) == 2, "one record and its data"


async def test_uploads_are_counted_with_their_bytes_and_what_was_refused(
    desk: Desk, video: bytes, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever way they are sent; a file that is sent twice takes its space once."""
    counted: Counter[str] = Counter()

    def inc(metric: RayCounter, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        counted[" ".join([metric.info["name"], *(tags or {}).values()])] += int(value)

    def put(metric: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        counted[metric.info["name"]] = int(value)

    monkeypatch.setattr(RayCounter, "inc", inc)
    monkeypatch.setattr(Gauge, "set", put)
    await desk.upload(video)
    await desk.client.post("/v1/uploads", files={"file": ("again.mp4", video)})
    headers = {**TUS, "Upload-Length": str(len(sound))}
    begun = await desk.client.post("/v1/uploads", headers=headers)
    assert counted["lipsync_uploads_kept_bytes"] == len(video) + len(sound)
    piece = {**TUS, **PIECE_TYPE, "Upload-Offset": "0"}
    await desk.client.patch(begun.headers["Location"], content=sound, headers=piece)
    await desk.client.patch(begun.headers["Location"], content=b"x", headers=piece)
    await desk.client.put("/v1/uploads/notes.mp4", content=b"no media" * 100)
    await desk.client.get(f"/v1/uploads/{'0' * 32}")
    await desk.client.delete(begun.headers["Location"])
    assert counted == {
        "lipsync_uploads_finished_total video": 2,
        "lipsync_uploads_finished_total audio": 1,
        "lipsync_upload_bytes_total": 2 * len(video) + len(sound) + 800,
        "lipsync_uploads_refused_total upload_offset": 1,
        "lipsync_uploads_refused_total invalid_file": 1,
        "lipsync_uploads_kept_bytes": len(video),
    }


@pytest.mark.slow
async def test_a_file_may_come_without_a_name_or_a_form(desk: Desk, sound: bytes) -> None:
    kind = {"Content-Type": "audio/wav"}
    for request in (
        desk.client.post("/v1/uploads", content=sound, headers=kind),
        desk.client.post("/v1/uploads/", files={"file": ("a.wav", sound)}),
        desk.client.put("/v1/uploads/", content=sound),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["kind"]) == (201, "audio")
    assert len(desk.stored) == 2


@pytest.mark.slow
async def test_curl_sends_a_file_of_unknown_length(
    desk: Desk, tmp_path: Path, sound: bytes
) -> None:
    file = tmp_path / "speech.wav"
    file.write_bytes(sound)
    for options in (["-T", str(file)], ["-T", "-", "-X", "PUT"]):
        url = f"http://127.0.0.1:{desk.port}/v1/uploads/"
        url += "" if options[1] != "-" else "speech.wav"
        with file.open("rb") as content:
            curl = await asyncio.create_subprocess_exec(
                "curl", "-sS", "--noproxy", "*", *options, url,
                stdin=content, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await curl.communicate()
        upload = json.loads(out)
        assert (upload["kind"], upload["width"], upload["name"]) == ("audio", None, "speech.wav")
        assert upload["duration_s"] == pytest.approx(0.6, abs=0.01)


async def test_a_resumable_upload_goes_on_where_it_was_cut_off(desk: Desk, video: bytes) -> None:
    name = base64.b64encode(b"cut.mp4").decode()
    made = await desk.client.post(
        "/v1/uploads",
        headers={**TUS, "Upload-Length": str(len(video)), "Upload-Metadata": f"filename {name}"},
    )
    assert made.status_code == 201, made.text
    assert "Upload-Expires" in made.headers
    path = made.headers["Location"]
    # What has arrived stays when the connection breaks, in the middle of the third piece.
    cut = 2 * PIECE + 7000
    first = head(
        "PATCH", path, "Tus-Resumable: 1.0.0", "Content-Type: application/offset+octet-stream",
        "Upload-Offset: 0", f"Content-Length: {len(video)}",
    )  # fmt: skip
    async with raw(desk.port, first + video[:cut]):
        [data] = [path for path in desk.stored if path.suffix == ".data"]
        await until_async(lambda: data.stat().st_size == 2 * PIECE, "two pieces are stored")
    await until_async(lambda: data.stat().st_size == cut, "the rest is stored")
    await until_async(lambda: is_free(data), "its writer has left it")
    state = await desk.client.head(path, headers=TUS)
    assert state.headers["Upload-Offset"] == str(cut)
    assert state.headers["Upload-Length"] == str(len(video))
    assert (await desk.client.get(path)).json()["status"] == "unfinished"
    wrong = await desk.client.patch(
        path, content=b"x", headers={**TUS, **PIECE_TYPE, "Upload-Offset": "5"}
    )
    assert (wrong.status_code, wrong.json()["code"]) == (409, "upload_offset")
    assert wrong.headers["Upload-Offset"] == str(cut)
    rest = await desk.client.patch(
        path,
        content=video[cut:],
        headers={**TUS, **PIECE_TYPE, "Upload-Offset": str(cut)},
    )
    assert (rest.status_code, rest.headers["Upload-Offset"]) == (204, str(len(video)))
    upload = (await desk.client.get(path)).json()
    assert (upload["status"], upload["kind"], upload["name"]) == ("ready", "video", "cut.mp4")
    assert data.read_bytes() == video


async def test_what_the_server_speaks_of_tus(desk: Desk) -> None:
    answer = await desk.client.options("/v1/uploads")
    assert answer.status_code == 204 and answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Extension"].split(",")[0] == "creation"
    other = await desk.client.post(
        "/v1/uploads", headers={"Tus-Resumable": "0.2.2", "Upload-Length": "5"}
    )
    assert (other.status_code, other.headers["Tus-Version"]) == (412, "1.0.0")
    for headers in (
        {},
        {"Upload-Length": "-1"},
        {"Upload-Length": "5", "Upload-Defer-Length": "1"},
    ):
        answer = await desk.client.post("/v1/uploads", headers={**TUS, **headers})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    neither = await desk.client.post("/v1/uploads", json={})
    assert neither.status_code == 422 and "multipart/form-data" in neither.json()["hint"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_content_decides_and_the_rest_is_refused(desk: Desk) -> None:
    for content, word in (
        (b"#EXTM3U\n" * 200, "playlist"),
        (b"PK\x03\x04" + bytes(2000), "archive"),
        (b"text " * 400, "text"),
        (b"", "empty"),
    ):
        answer = await desk.client.put("/v1/uploads/a.mp4", content=content)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_file")
        assert word in answer.json()["error_message"]
    assert desk.stored == []


@pytest.mark.slow
async def test_files_that_are_too_large_are_refused_before_they_are_sent(desk: Desk) -> None:
    size = 3_000_000_000
    request = head("PUT", "/v1/uploads/a.mp4", f"Content-Length: {size}", "Expect: 100-continue")
    async with raw(desk.port, request) as connection:
        answer = await connection.answer()
    assert answer.startswith(b"HTTP/1.1 413") and b"media_too_large" in answer
    assert desk.stored == []


@pytest.mark.slow
async def test_an_upload_of_unknown_length_ends_at_the_limit(tmp_path: Path) -> None:
    # The client stops by itself, once it has sent all: a gate that closed before that would take
    # the answer with it.
    patient = replace(LIMITS, linger_s=60.0)
    async with desk_of(tmp_path, patient, WORKER_MAX_FILE_MB="1") as desk:

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield bytes(50_000)

        answer = await desk.client.put("/v1/uploads/a.mp4", content=endless())
        assert (answer.status_code, answer.json()["code"]) == (413, "media_too_large")
        assert desk.stored == []


@pytest.mark.slow
async def test_a_full_budget_is_507_and_deleting_makes_room(desk: Desk, video: bytes) -> None:
    first = await desk.upload(video)
    store = desk.door.services.uploads
    assert store is not None
    store.space.max_bytes = 2 * len(video) - 1
    other = video + b"x"
    for request in (
        desk.client.put("/v1/uploads/b.mp4", content=other),
        desk.client.post("/v1/uploads", files={"file": ("b.mp4", other)}),
        desk.client.post("/v1/uploads", headers={**TUS, "Upload-Length": str(len(other))}),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["code"]) == (507, "uploads_full")
        assert answer.json()["retryable"] and "DELETE" in answer.json()["hint"]
    assert len(desk.stored) == 2
    assert (await desk.client.delete(f"/v1/uploads/{first['id']}")).status_code == 204
    assert desk.stored == []
    await desk.upload(other)


@pytest.mark.slow
async def test_a_full_disk_is_507_and_leaves_nothing(desk: Desk, video: bytes) -> None:
    store = desk.door.services.uploads
    assert store is not None
    store.space.free_bytes = 1 << 60  # so much is left to the jobs
    answer = await desk.client.put("/v1/uploads/b.mp4", content=video)
    assert (answer.status_code, answer.json()["code"]) == (507, "uploads_full")
    assert desk.stored == []


PART = b"--b\r\nContent-Disposition: form-data"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "word"),
    [
        (PART + b"; name=file; filename=a\r\n\r\nhalf", "ends before"),
        (PART + b"; name=other; filename=a\r\n\r\nx\r\n--b--\r\n", "`file`"),
        (PART + b"; name=file\r\n\r\nx\r\n--b--\r\n", "`file`"),
        (PART + b"\r\n\r\nx\r\n--b--\r\n", "name"),
        (b"no form at all", "valid form"),
        (PART + b"; name=a\r\n\r\n" + bytes(70_000), "too large"),
    ],
)  # fmt: skip
async def test_broken_forms_are_422_and_leave_nothing(desk: Desk, form: bytes, word: str) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await desk.client.post("/v1/uploads", content=form, headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert word in answer.json()["error_message"]
    assert desk.stored == []


# --- clients that go away, or are slow, or come twice -------------------------------------------


@pytest.mark.slow
async def test_an_upload_that_is_broken_off_leaves_nothing(desk: Desk, video: bytes) -> None:
    request = head("PUT", "/v1/uploads/a.mp4", f"Content-Length: {len(video)}")
    async with raw(desk.port, request + video[: 2 * PIECE + 1]):
        await until_async(lambda: len(desk.stored) == 2, "the upload has begun")
    await until_async(lambda: desk.stored == [], "the upload is removed")


@pytest.mark.slow
async def test_a_slow_upload_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = head("PUT", "/v1/uploads/a.mp4", "Content-Length: 100000")
    async with desk_of(tmp_path) as desk:
        async with raw(desk.port, request + bytes(PIECE + 1)) as connection:
            await until_async(lambda: len(desk.stored) == 2, "the upload has begun")
            [data] = [path for path in desk.stored if path.suffix == ".data"]
            await until_async(lambda: data.stat().st_size == PIECE, "a piece is stored")
            skip(30.0, monkeypatch)
            answer = await connection.answer()
        assert answer.startswith(b"HTTP/1.1 408") and b"body_too_slow" in answer
        assert desk.stored == []


@pytest.mark.slow
async def test_more_writers_than_places_are_503(tmp_path: Path, video: bytes) -> None:
    uploads = UploadLimits(piece_bytes=PIECE, writers=1, place_s=0.5)
    limits = replace(PATIENT, uploads=uploads)
    async with desk_of(tmp_path, limits) as desk:
        request = head("PUT", "/v1/uploads/a.mp4", f"Content-Length: {len(video)}")
        async with raw(desk.port, request + video[:100]):
            await until_async(lambda: len(desk.stored) == 2, "the upload has begun")
            answer = await desk.client.put("/v1/uploads/b.mp4", content=video)
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_uploads")
            assert answer.headers["Retry-After"] == "5"
        await until_async(lambda: desk.stored == [], "the upload is removed")
        await desk.upload(video)


@pytest.mark.slow
async def test_the_same_file_twice_at_once(desk: Desk, video: bytes) -> None:
    uploads = await asyncio.gather(*(desk.upload(video) for _ in range(3)))
    assert len({upload["id"] for upload in uploads}) == 1
    assert len(desk.stored) == 2
    [data] = [path for path in desk.stored if path.suffix == ".data"]
    assert hashlib.sha256(data.read_bytes()).digest() == hashlib.sha256(video).digest()


@pytest.mark.slow
async def test_two_requests_cannot_write_to_one_upload(desk: Desk, video: bytes) -> None:
    made = await desk.client.post("/v1/uploads", headers={**TUS, "Upload-Length": "50000"})
    pieces = [
        desk.client.patch(
            made.headers["Location"],
            content=os.urandom(PIECE),
            headers={**TUS, **PIECE_TYPE, "Upload-Offset": "0"},
        )
        for _ in range(4)
    ]
    statuses = sorted([answer.status_code for answer in await asyncio.gather(*pieces)])
    assert statuses.count(204) == 1 and set(statuses) <= {204, 409, 423}


# --- whose it is ----------------------------------------------------------------------------------


async def test_only_the_key_that_sent_it_sees_an_upload(tmp_path: Path, video: bytes) -> None:
    """Without a key of this worker's own, callers still have keys, and each sees its own files."""
    async with desk_of(tmp_path, ALLOW_ANONYMOUS="true") as desk:
        mine = {"X-Internal-API-Key": "mine-1"}
        made = await desk.client.put("/v1/uploads/a.mp4", content=video, headers=mine)
        upload = made.json()
        path = f"/v1/uploads/{upload['id']}"
        for other in ({}, {"X-Internal-API-Key": "other-1"}):
            for method, body in (("GET", None), ("HEAD", None), ("DELETE", None)):
                answer = await desk.client.request(method, path, headers=other, json=body)
                assert answer.status_code == 404
            listed = await desk.client.get("/v1/uploads", headers=other)
            assert listed.json() == {"uploads": []}
            job = {"video_url": upload["url"], "audio_url": "https://h.example/a.wav"}
            span = {"start_s": 0.0, "end_s": 1.0, "audio": {"url": upload["url"]}}
            batch = {"jobs": [{**job, "video_url": "https://h.example/v.mp4"}, job]}
            answer = await desk.client.post("/v1/avatar/batches", json=batch, headers=other)
            assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")
            spoken = {**batch["jobs"][0], "params": {"segments": [span]}}
            for route in ("/v1/avatar/jobs", "/v1/estimate"):
                answer = await desk.client.post(route, json=spoken, headers=other)
                assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")
            for route, more in (("/v1/avatar/jobs", {}), ("/generate", {"musetalk_job_id": "a"}),
                                ("/v1/avatar/preview", {}), ("/v1/estimate", {})):  # fmt: skip
                answer = await desk.client.post(route, json={**job, **more}, headers=other)
                assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")
                absent = {**job, **more, "video_url": "upload://" + "0" * 32}
                same = await desk.client.post(route, json=absent, headers=other)
                assert same.json() == answer.json(), "it does not tell that the file exists"
        assert len((await desk.client.get("/v1/uploads", headers=mine)).json()["uploads"]) == 1
        kept = b"".join(path.read_bytes() for path in desk.stored if path.suffix == ".json")
        assert b"mine-1" not in kept


async def test_uploads_need_the_key(tmp_path: Path, video: bytes) -> None:
    async with desk_of(tmp_path, INGRESS_API_KEY=KEY) as desk:
        answer = await desk.client.put("/v1/uploads/a.mp4", content=video)
        assert (answer.status_code, answer.json()["code"]) == (401, "key_missing")
        assert desk.stored == []
        key = {"Authorization": f"Bearer {KEY}"}
        made = await desk.client.put("/v1/uploads/a.mp4", content=video, headers=key)
        assert made.status_code == 201
        other_header = {"X-Internal-API-Key": KEY}
        answer = await desk.client.get(made.headers["Location"], headers=other_header)
        assert answer.status_code == 200


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_job_names_uploads(desk: Desk, video: bytes, sound: bytes) -> None:
    job = {
        "video_url": (await desk.upload(video))["url"],
        "audio_url": (await desk.upload(sound, "a.wav"))["url"],
    }
    answer = await desk.client.post("/v1/avatar/jobs", json=job)
    assert answer.status_code == 202
    assert answer.json()["input"]["video_url"] == job["video_url"]


@pytest.mark.slow
async def test_a_job_cannot_name_an_unfinished_upload(desk: Desk) -> None:
    made = await desk.client.post("/v1/uploads", headers={**TUS, "Upload-Length": "5000"})
    url = "upload://" + made.headers["Location"].rpartition("/")[2]
    job = {"video_url": url, "audio_url": "https://h.example/a.wav"}
    answer = await desk.client.post("/v1/avatar/jobs", json=job)
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_unfinished")


async def test_a_job_comes_with_its_files_in_one_form(
    desk: Desk, video: bytes, sound: bytes
) -> None:
    """The same form again, after an answer that was lost, joins the same job."""
    form: dict[str, Any] = {
        "files": {"video": ("v.mp4", video), "audio": ("a.wav", sound)},
        "data": {"params": json.dumps({"crf": 20}), "musetalk_job_id": "form-1",
                 "metadata": json.dumps({"a": 1})},
    }  # fmt: skip
    for _ in range(2):
        answer = await desk.client.post("/v1/avatar/jobs", **form)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["id"], job["metadata"]) == ("form-1", {"a": 1})
        assert job["input"]["params"] == {"crf": 20}
        assert job["input"]["audio_url"].startswith("upload://")
    assert len(desk.stored) == 4


@pytest.mark.slow
async def test_a_form_for_a_job_may_have_addresses_too(desk: Desk, video: bytes) -> None:
    fields = {"audio_url": "https://h.example/a.wav"}
    files = {"video": ("v.mp4", video)}
    answer = await desk.client.post("/v1/avatar/jobs", files=files, data=fields)
    assert answer.status_code == 202
    both = await desk.client.post(
        "/v1/avatar/jobs", files=files, data={**fields, "video_url": "https://h.example/v.mp4"}
    )
    assert both.status_code == 422 and "not both" in both.json()["error_message"]
    no_json = await desk.client.post("/v1/avatar/jobs", files=files, data={**fields, "params": "{"})
    assert no_json.status_code == 422 and "`params`" in no_json.json()["error_message"]
    strange = await desk.client.post("/v1/avatar/jobs", files=files, data={**fields, "crf": "1"})
    assert strange.status_code == 422 and "params.crf" in strange.json()["error_message"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 6.0])
async def test_small_sound_may_be_in_the_request_itself(
    desk: Desk, speech: Any, seconds: float
) -> None:
    """In a body of any size. The same request again joins the same job."""
    sound = speech(seconds).read_bytes()
    body = {
        "musetalk_job_id": "inline",
        "video_url": "https://h.example/v.mp4",
        "audio_url": f"data:audio/wav;base64,{base64.b64encode(sound).decode()}",
    }
    for _ in range(2):
        answer = await desk.client.post("/v1/avatar/jobs", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["input"]["audio_url"].startswith("upload://")
    data = [path for path in desk.stored if path.suffix == ".data"]
    assert [path.read_bytes() for path in data] == [sound]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "status", "word"),
    [
        ("data:audio/wav,RIFF", 422, "base64"),
        ("data:audio/wav;base64,?", 422, "base64"),
        ("data:audio/wav;base64," + base64.b64encode(b"text" * 1000).decode(), 422, "text"),
        ("data:audio/wav;base64," + base64.b64encode(bytes((8 << 20) + 1)).decode(), 422, "8 MiB"),
        ("https://h.example/" + "a" * 100_000, 413, "larger"),
    ],
)
async def test_what_else_is_in_a_request_is_refused(
    desk: Desk, url: str, status: int, word: str
) -> None:
    body = {"video_url": "https://h.example/v.mp4", "audio_url": url}
    answer = await desk.client.post("/v1/avatar/jobs", json=body)
    assert answer.status_code == status and word in answer.json()["error_message"]
    assert desk.stored == []


@pytest.mark.slow
async def test_a_restart_in_the_middle_loses_nothing(tmp_path: Path, video: bytes) -> None:
    """A resumable upload goes on where it was, and one that was not resumable goes in its time."""
    async with desk_of(tmp_path) as desk:
        made = await desk.client.post(
            "/v1/uploads", headers={**TUS, "Upload-Length": str(len(video))}
        )
        path = made.headers["Location"]
        piece = {**TUS, **PIECE_TYPE, "Upload-Offset": "0"}
        await desk.client.patch(path, content=video[:PIECE], headers=piece)
    (tmp_path / "results").rmdir()
    async with desk_of(tmp_path) as desk:
        state = await desk.client.head(path, headers=TUS)
        assert state.headers["Upload-Offset"] == str(PIECE)
        piece["Upload-Offset"] = str(PIECE)
        answer = await desk.client.patch(path, content=video[PIECE:], headers=piece)
        assert answer.status_code == 204
        assert (await desk.client.get(path)).json()["kind"] == "video"


@pytest.mark.slow
async def test_a_client_of_tus_from_elsewhere_understands_us(
    desk: Desk, tmp_path: Path, video: bytes
) -> None:
    """tuspy, which is the reference client for Python."""
    file = tmp_path / "clip.mp4"
    file.write_bytes(video)

    def upload() -> str:
        client = TusClient(f"http://127.0.0.1:{desk.port}/v1/uploads")
        named = {"filename": "clip.mp4"}
        with file.open("rb") as stream:
            uploader = client.uploader(file_stream=stream, chunk_size=17_000, metadata=named)
            uploader.upload()
        return str(uploader.url)

    url = await asyncio.to_thread(upload)
    upload_ = (await desk.client.get(url)).json()
    assert (upload_["status"], upload_["name"], upload_["kind"]) == ("ready", "clip.mp4", "video")
    [data] = [path for path in desk.stored if path.suffix == ".data"]
    assert data.read_bytes() == video


@pytest.mark.slow
async def test_a_document_that_is_too_large_for_files_is_refused_before_it_is_sent(
    desk: Desk,
) -> None:
    request = head(
        "POST", "/v1/avatar/jobs", "Content-Type: application/json", f"Content-Length: {13 << 20}"
    )
    async with raw(desk.port, request) as connection:
        answer = await connection.answer()
    assert answer.startswith(b"HTTP/1.1 413") and b"body_too_large" in answer


async def test_the_document_of_the_api_describes_forms_and_files(desk: Desk) -> None:
    """A client that is generated from it, and /docs, can send files."""
    paths = (await desk.client.get("/openapi.json")).json()["paths"]

    def kinds(method: str, path: str) -> set[str]:
        return set(paths[path][method]["requestBody"]["content"])

    assert kinds("post", "/v1/uploads") == {"multipart/form-data"}
    assert kinds("put", "/v1/uploads/{name}") == {"application/octet-stream"}
    assert kinds("patch", "/v1/uploads/{upload_id}") == {"application/offset+octet-stream"}
    for path in JOB_FORMS:
        assert kinds("post", path) == {"application/json", "multipart/form-data"}, path


@pytest.mark.slow
async def test_a_large_file_may_come_in_many_small_chunks(tmp_path: Path) -> None:
    """Their framing is more than a body of any other request may have."""
    n_chunks = 90_000
    chunk = b"200\r\n" + b"#EXTM3U\n" * 64 + b"\r\n"
    framing = n_chunks * (len(chunk) - 512)
    assert framing > ConnectionLimits().framing_bytes
    request = head("PUT", "/v1/uploads/a.m3u8", "Transfer-Encoding: chunked", "Connection: close")
    async with desk_of(tmp_path, PATIENT) as desk, raw(desk.port, request) as connection:
        for _ in range(n_chunks // 1000):
            await connection.send(chunk * 1000)
        await connection.send(b"0\r\n\r\n")
        answer = await connection.answer()
        assert answer.startswith(b"HTTP/1.1 422") and b"playlist" in answer
        assert desk.stored == []
