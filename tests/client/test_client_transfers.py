"""Uploads, downloads and events over connections that break: what goes on where, and what ends."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, ScriptedServer, Seen, refusal, reply

import lipsync_client.uploading
from lipsync_client import (
    ApiError,
    BadAnswer,
    Job,
    JobFailed,
    LipsyncClient,
    NotFinished,
    Retries,
    Unreachable,
    WaitTimedOut,
)

JOB = "/v1/avatar/jobs/a"
CONTENT = bytes(range(256)) * 400
Serve = Callable[..., ScriptedServer]


def job(status: str = "running", fraction: float = 0.5, **more: Any) -> dict[str, Any]:
    progress = {"phase": status, "fraction": fraction}
    return {"id": "a", "status": status, "progress": progress, **more}


def event(name: str, body: Any, number: int | None = None) -> bytes:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(body)}\n\n".encode()


def stream(*events: bytes, is_cut: bool = False) -> Reply:
    """Return a stream of events; one that is cut announces more than it has."""
    body = b": hello\n\n" + b"".join(events)
    headers = {"Content-Type": "text/event-stream", "Content-Length": str(len(body) + is_cut)}
    return Reply(200, body, headers, cut_after=len(body) if is_cut else None)


# --- events ---------------------------------------------------------------------------------------


def test_a_stream_that_breaks_goes_on_after_its_last_event(serve: Serve, either: Any) -> None:
    streams = [
        stream(event("progress", job(fraction=0.1), 3), event("progress", job(fraction=0.2))),
        stream(event("progress", job(fraction=0.3), 5), is_cut=True),
        refusal(503, "busy", retryable=True),
        stream(event("end", job("succeeded", 1.0, output_url="u"))),
    ]
    server = serve(lambda seen: streams.pop(0) if "events" in seen.path else reply(job()))
    fractions: list[float] = []
    ended = either(server.url, "wait", "a", lambda job: fractions.append(job.progress.fraction))
    assert (ended.status, ended.output_url) == ("succeeded", "u")
    assert [one for one in fractions if one != 0.5] == [0.1, 0.2, 0.3, 1.0]
    asked = [seen.headers.get("last-event-id") for seen in server.seen if "events" in seen.path]
    assert asked == [None, "3", "5", "5"]


def test_a_job_that_ended_while_the_connection_was_broken_is_known_from_its_state(
    serve: Serve, call: Any
) -> None:
    """Some proxies hold back events until the connection is closed."""

    states = [reply(job()), reply(job("succeeded", 1.0, output_url="u"))]
    server = serve(lambda seen: stream() if "events" in seen.path else states.pop(0))
    assert [state.status for state in call(server.url, "events", "a")] == ["running", "succeeded"]
    assert server.lines() == [f"GET {JOB}", f"GET {JOB}/events", f"GET {JOB}"]


def test_a_wait_ends_at_its_deadline_and_the_job_goes_on(serve: Serve, either: Any) -> None:
    body = b": hello\n\n"
    headers = {"Content-Type": "text/event-stream", "Content-Length": str(len(body))}
    server = serve(
        lambda seen: Reply(200, body, headers) if "events" in seen.path else reply(job())
    )
    with pytest.raises(WaitTimedOut) as raised:
        either(server.url, "wait", "a", timeout_s=0.3)
    assert raised.value.code == "wait_timed_out"
    assert not any(line.startswith("DELETE") for line in server.lines())


def test_a_server_that_does_not_come_back_before_the_deadline_ends_the_wait(
    serve: Serve, call: Any
) -> None:
    gone = refusal(503, "stopping", retryable=True, Retry_After="30")
    server = serve(lambda seen: gone if "events" in seen.path else reply(job()))
    with pytest.raises(WaitTimedOut):
        call(server.url, "wait", "a", timeout_s=0.1, retries=Retries(60.0, 60.0, 0.001, 0.001))


def test_following_a_job_that_is_not_there_is_refused_at_once(serve: Serve, either: Any) -> None:
    server = serve(lambda seen: refusal(404, "job_not_found"))
    with pytest.raises(ApiError) as raised:
        either(server.url, "wait", "a")
    assert raised.value.code == "job_not_found"
    assert len(server.seen) == 1


def test_a_reader_may_stop_half_way(serve: Serve) -> None:
    many = stream(*(event("progress", job(), number) for number in range(1, 9)))
    server = serve(lambda seen: many if "events" in seen.path else reply(job()))
    with LipsyncClient(server.url) as client:
        events = client.events("a")
        assert [isinstance(next(events), Job) for _ in range(3)] == [True] * 3
        events.close()  # type: ignore[attr-defined]
    assert server.lines() == [f"GET {JOB}", f"GET {JOB}/events"]


# --- uploads --------------------------------------------------------------------------------------


@dataclass
class Tus:
    """A server of the tus protocol. `trouble`: answers to pieces, before they are taken."""

    most: int = 1 << 20
    trouble: list[Reply] = field(default_factory=list)
    kept: bytes = b""
    names: list[str] = field(default_factory=list)
    asked: int = 0

    def __call__(self, seen: Seen) -> Reply:
        if seen.method == "POST":
            name, _, value = seen.headers["upload-metadata"].partition(" ")
            assert (name, seen.headers["tus-resumable"]) == ("filename", "1.0.0")
            self.names.append(base64.b64decode(value).decode())
            return Reply(201, headers={"Location": "http://inside:1/prefix/v1/uploads/u1"})
        assert seen.path == "/v1/uploads/u1"
        if seen.method == "HEAD":
            self.asked += 1
            return Reply(200, headers={"Upload-Offset": str(len(self.kept))})
        if seen.method == "GET":
            body = {"id": "u1", "url": "upload://u1", "kind": "video", "bytes": len(self.kept)}
            return reply(body | {"duration_s": 2.0, "width": 64, "status": "ready"})
        if len(seen.body) > self.most:
            return refusal(413, "body_too_large")
        if self.trouble:
            return self.trouble.pop(0)
        assert int(seen.headers["upload-offset"]) == len(self.kept)
        self.kept += seen.body
        return Reply(204, headers={"Upload-Offset": str(len(self.kept))})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lipsync_client.uploading, "PIECE_BYTES", 40_000)
    monkeypatch.setattr(lipsync_client.uploading, "LEAST_PIECE_BYTES", 8_000)
    path = tmp_path / "ein Gesicht.mp4"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_uploaded_in_pieces(serve: Serve, call: Any, file: Path) -> None:
    tus = Tus()
    server = serve(tus)
    seen: list[int] = []
    upload = call(server.url, "upload", file, lambda transfer: seen.append(transfer.done))
    assert tus.kept == CONTENT
    assert (upload.url, upload.kind, upload.width) == ("upload://u1", "video", 64)
    assert tus.names == ["ein Gesicht.mp4"]
    assert seen == [0, 40_000, 80_000, len(CONTENT)]


def test_an_upload_goes_on_where_it_broke_off(serve: Serve, either: Any, file: Path) -> None:
    trouble = [Reply(cut_after=-1), refusal(503, "busy", retryable=True), Reply(409)]
    tus = Tus(trouble=trouble)
    assert either(serve(tus).url, "upload", file).bytes == len(CONTENT)
    assert (tus.kept == CONTENT, tus.asked) == (True, 3)


def test_pieces_shrink_to_what_a_proxy_lets_through(serve: Serve, call: Any, file: Path) -> None:
    tus = Tus(most=10_000)
    call(serve(tus).url, "upload", file)
    assert tus.kept == CONTENT


def test_an_upload_that_is_refused_is_not_tried_again(serve: Serve, call: Any, file: Path) -> None:
    tus = Tus(trouble=[refusal(422, "invalid_video")])
    with pytest.raises(ApiError) as raised:
        call(serve(tus).url, "upload", file)
    assert raised.value.code == "invalid_video"


def test_files_of_a_job_are_uploaded_once_each(serve: Serve, either: Any, file: Path) -> None:
    tus = Tus()
    server = serve(lambda seen: reply(job("queued")) if seen.path.endswith("jobs") else tus(seen))
    either(server.url, "submit", file, str(file))
    assert server.seen[-1].json() == {"video_url": "upload://u1", "audio_url": "upload://u1"}
    assert len(tus.names) == 1
    with pytest.raises(FileNotFoundError):
        either(server.url, "submit", file.with_name("none"), "https://h/a")


# --- downloads ------------------------------------------------------------------------------------


@dataclass
class Files:
    """A server of one result. `cuts`: after how many bytes each answer breaks off."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    first: list[Reply] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    shift: int = 0  # of the part that is sent, from the one that was asked for
    url: str = "/files/a.mp4?signature=s"

    def __call__(self, seen: Seen) -> Reply:
        if seen.path == JOB:
            return reply(job("succeeded", 1.0, output_url=self.url))
        self.keys.append(seen.headers.get("x-internal-api-key"))
        self.ranges.append(seen.headers.get("range"))
        if self.first:
            return self.first.pop(0)
        start, headers = 0, {} if self.etag is None else {"ETag": self.etag}
        if "range" in seen.headers and seen.headers["if-range"] == self.etag:
            start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-"))
        body = self.content[start:]
        if start:
            headers["Content-Range"] = f"bytes {start + self.shift}-*/{len(self.content)}"
        cut = self.cuts.pop(0) if self.cuts else None
        return Reply(206 if start else 200, body, headers, cut_after=cut)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_goes_on_where_it_broke_off(serve: Serve, either: Any, tmp_path: Path) -> None:
    files = Files(cuts=[30_000, 100, 20_000, 100])
    target = tmp_path / "a.mp4"
    done: list[int] = []
    found = either(serve(files).url, "download", "a", target, lambda to: done.append(to.done))
    assert found == target and target.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["a.mp4"]
    assert files.ranges == [None, None, "bytes=30000-", None, "bytes=50000-"]
    assert done == sorted(done) and done[-1] == len(CONTENT)


def test_a_later_call_goes_on_too(serve: Serve, call: Any, tmp_path: Path) -> None:
    files = Files(cuts=[30_000, 0, 0, 0, 0, 0, 0])
    server, target = serve(files), tmp_path / "a.mp4"
    with pytest.raises(Unreachable):
        call(server.url, "download", "a", target, retries=Retries(0.0, 0.0, 0.0, 0.0))
    assert not target.exists()
    files.cuts = []
    call(server.url, "download", "a", target)
    assert target.read_bytes() == CONTENT
    assert files.ranges[-1] == "bytes=30000-"
    assert left_in(tmp_path) == ["a.mp4"]


def test_a_result_that_was_made_again_is_fetched_from_its_beginning(
    serve: Serve, call: Any, tmp_path: Path
) -> None:
    files = Files(cuts=[30_000])
    server, target = serve(files), tmp_path / "a.mp4"
    with pytest.raises(Unreachable):
        call(server.url, "download", "a", target, retries=Retries(0.0, 0.0, 0.0, 0.0))
    files.content, files.etag = CONTENT[::-1], '"two"'
    call(server.url, "download", "a", target)
    assert target.read_bytes() == CONTENT[::-1]
    assert left_in(tmp_path) == ["a.mp4"]


def test_without_a_validator_nothing_is_continued(serve: Serve, call: Any, tmp_path: Path) -> None:
    files = Files(etag=None, cuts=[30_000])
    target = tmp_path / "a.mp4"
    call(serve(files).url, "download", "a", target)
    assert (target.read_bytes() == CONTENT, files.ranges) == (True, [None, None])


def test_an_expired_link_is_replaced_by_a_new_one(serve: Serve, call: Any, tmp_path: Path) -> None:
    files = Files(first=[refusal(403, "link_expired")])
    server = serve(files)
    call(server.url, "download", "a", tmp_path / "a.mp4")
    assert server.lines().count(f"GET {JOB}") == 2


def test_the_key_is_sent_to_the_server_alone(serve: Serve, either: Any, tmp_path: Path) -> None:
    """Results may be elsewhere, behind a signed address or a redirection."""
    elsewhere = Files()
    files = Files(url=f"{serve(elsewhere).url}/bucket/a.mp4?signature=s")
    either(serve(files).url, "download", "a", tmp_path / "one.mp4")
    moved = Files(first=[Reply(302, headers={"Location": files.url})])
    either(serve(moved).url, "download", "a", tmp_path / "two.mp4")
    assert elsewhere.keys == [None, None]
    assert moved.keys == ["the-key"]
    assert (tmp_path / "two.mp4").read_bytes() == CONTENT


def test_what_is_there_is_not_overwritten_unless_that_is_said(
    serve: Serve, call: Any, tmp_path: Path
) -> None:
    server, target = serve(Files()), tmp_path / "a.mp4"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        call(server.url, "download", "a", target)
    assert target.read_text() == "mine" and server.seen == []
    call(server.url, "download", "a", target, may_overwrite=True)
    assert target.read_bytes() == CONTENT


def test_a_result_that_is_gone_or_not_there_yet_is_said_to_be(
    serve: Serve, call: Any, tmp_path: Path
) -> None:
    target = tmp_path / "a.mp4"
    states = {"running": NotFinished, "cancelled": JobFailed}
    for status, error in states.items():
        server = serve(lambda seen, status=status: reply(job(status)))
        with pytest.raises(error):
            call(server.url, "download", "a", target)
    with pytest.raises(ApiError) as raised:
        call(serve(Files(first=[refusal(404, "file_not_found")])).url, "download", "a", target)
    assert raised.value.code == "file_not_found"
    assert left_in(tmp_path) == []


def test_a_part_that_was_not_asked_for_is_not_written(
    serve: Serve, call: Any, tmp_path: Path
) -> None:
    server = serve(Files(cuts=[30_000], shift=5))
    with pytest.raises(BadAnswer):
        call(server.url, "download", "a", tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_a_download_that_always_breaks_off_at_the_same_place_is_given_up(
    serve: Serve, call: Any, tmp_path: Path
) -> None:
    files = Files(etag=None, cuts=[30_000] * 1000)
    with pytest.raises(Unreachable):
        call(
            serve(files).url,
            "download",
            "a",
            tmp_path / "a.mp4",
            retries=Retries(0.1, 0.1, 0.01, 0.01),
        )
    assert 2 <= len(files.ranges) < 100
