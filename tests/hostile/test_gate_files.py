"""Files through the proxy's gate: in pieces, with back-pressure, as one whole (mend 4.2)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve_app.gate.callers import CallerRules
from serve_app.gate.file_pieces import FileLimits
from serve_app.gate.middleware import Gate
from tests.hostile.edge import PATIENT, Inner, caller, gated, head, listening, raw
from tests.waiting import turns, until_async

MIB = 1 << 20
SMALL_PIECES = replace(PATIENT, files=FileLimits(piece_bytes=1000))
CONTENT = os.urandom(10_500)


@dataclass
class Shelf:
    """A client, and the application whose file it reads."""

    client: httpx.AsyncClient
    inner: Inner
    file: Path


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    file = tmp_path / "a.mp4"
    file.write_bytes(CONTENT)
    inner = Inner(folder=tmp_path)
    async with gated(inner, SMALL_PIECES) as port, caller(port) as client:
        yield Shelf(client, inner, file)


async def test_a_file_comes_whole_and_in_pieces(shelf: Shelf) -> None:
    """Mend 4.2: query and headers go along with every piece, for signatures and keys."""
    url, key = "/files/a.mp4?signature=s", {"X-Internal-API-Key": "k"}
    answer = await shelf.client.get(url, headers=key)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes" and "content-range" not in answer.headers
    pieces = [scope for scope in shelf.inner.seen if scope["path"] != "/hc"]
    assert len(pieces) == 11
    for scope in pieces:
        assert scope["query_string"] == b"signature=s"
        assert dict(scope["headers"])[b"x-internal-api-key"] == b"k"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=999-3001", 999, 3002),
        ("bytes=10000-", 10_000, 10_500),
        ("bytes=10000-99999", 10_000, 10_500),
        ("bytes=-10", 10_490, 10_500),
        ("bytes=-3000", 7_500, 10_500),
        ("bytes=-99999", 0, 10_500),
    ],
)
async def test_ranges(shelf: Shelf, asked: str, start: int, stop: int) -> None:
    answer = await shelf.client.get("/files/a.mp4", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=9-2", "bytes=-", "bytes=-0"]
)
async def test_a_range_that_is_none_gives_the_whole(shelf: Shelf, asked: str) -> None:
    answer = await shelf.client.get("/files/a.mp4", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


async def test_a_range_past_the_end_is_refused(shelf: Shelf) -> None:
    answer = await shelf.client.get("/files/a.mp4", headers={"Range": "bytes=10500-"})
    assert answer.status_code == 416 and answer.headers["content-range"] == "bytes */10500"


async def test_if_range(shelf: Shelf) -> None:
    """A resumed download of a file that has changed begins again."""
    etag = (await shelf.client.get("/files/a.mp4")).headers["etag"]
    for condition, status in ((etag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=2000-", "If-Range": condition}
        answer = await shelf.client.get("/files/a.mp4", headers=headers)
        assert answer.status_code == status
        assert answer.content == (CONTENT[2000:] if status == 206 else CONTENT)


async def test_head_of_a_file(shelf: Shelf) -> None:
    """Mend 1.17: HEAD on /files."""
    answer = await shelf.client.head("/files/a.mp4")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))


async def test_what_the_application_refuses_is_passed_on(shelf: Shelf) -> None:
    answer = await shelf.client.get("/files/b.mp4")
    assert (answer.status_code, answer.json()) == (404, {"code": "none"})
    shelf.file.write_bytes(b"")
    answer = await shelf.client.get("/files/a.mp4")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_file_that_is_replaced_meanwhile_ends_short(tmp_path: Path) -> None:
    """Never half of one video and half of another."""
    file = tmp_path / "a.mp4"
    with file.open("wb") as writer:
        writer.truncate(64 * MIB)
    inner = Inner(folder=tmp_path)
    async with gated(inner) as port, raw(port, head("GET", "/files/a.mp4"), 4096) as reader:
        await reader.reader.readuntil(b"\r\n\r\n")
        other = tmp_path / "b.mp4"
        with other.open("wb") as writer:
            writer.truncate(65 * MIB)
        other.replace(file)
        assert len(await reader.answer()) < 64 * MIB


async def test_clients_that_never_read_leave_memory_flat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mend 4.2: six of them, each of a file of 200 MB; then their connections end."""
    with (tmp_path / "large.mp4").open("wb") as writer:
        writer.truncate(200 * MIB)
    inner = Inner(folder=tmp_path)
    caplog.set_level(logging.INFO)
    limits = replace(PATIENT, files=FileLimits(slice_s=1.0))
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(gated(inner, limits))
        client = await stack.enter_async_context(caller(port))
        assert (await client.get("/hc")).status_code == 200
        before = process.memory_info().rss
        get = head("GET", "/files/large.mp4")
        for _ in range(6):
            await stack.enter_async_context(raw(port, get, receive_buffer=4096))
        await until_async(
            lambda: caplog.text.count("did not read") == 6, "not all readers were cut off"
        )
        # What the kernel's socket buffers take (a few MiB each), and a piece.
        assert inner.sent_bytes < 6 * 16 * MIB
        assert process.memory_info().rss - before < 64 * MIB
        assert (await client.get("/hc")).status_code == 200


async def test_more_readers_than_may_are_asked_to_come_back(tmp_path: Path) -> None:
    """Mend 4.2: limits on readers; one that goes away makes room at once."""
    with (tmp_path / "large.mp4").open("wb") as writer:
        writer.truncate(200 * MIB)
    inner = Inner(folder=tmp_path)
    limits = replace(PATIENT, files=FileLimits(readers=1, place_s=0.05))
    async with gated(inner, limits) as port, caller(port) as client:
        async with raw(port, head("GET", "/files/large.mp4"), receive_buffer=4096) as reader:
            await reader.reader.readuntil(b"\r\n\r\n")
            answer = await client.get("/files/large.mp4", headers={"Range": "bytes=0-1"})
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
            assert answer.json()["code"] == "too_many_readers"

        async def has_room() -> bool:
            again = await client.get("/files/large.mp4", headers={"Range": "bytes=0-1"})
            return again.status_code == 206

        await until_async(has_room, "the place was not given back")
        await until_async(lambda: inner.under_way == 0, "a request has not ended")
        assert inner.sent_bytes < 100 * MIB  # nothing is read for a client that has gone


async def test_wrong_links_do_not_crowd_out_readers(tmp_path: Path) -> None:
    """Mend 4.4: 64 connections that sent made-up signatures left 15 of 40 requests a place."""
    (tmp_path / "clip.mp4").write_bytes(b"video")

    class Checking(Inner):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["query_string"] == b"signature=wrong":
                self.arrived.set()
                await self.release.wait()
                await JSONResponse({"code": "link_wrong"}, 403)(scope, receive, send)
                return
            await super().__call__(scope, receive, send)

    inner = Checking(folder=tmp_path)
    limits = replace(PATIENT, files=FileLimits(readers=1, place_s=60))
    gate, came = Gate(inner, CallerRules(), limits, is_proxy=True), asyncio.Event()

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"] == b"signature=right":
            came.set()
        await gate(scope, receive, send)

    async with listening(noting) as port, caller(port) as client:
        wrong = asyncio.create_task(client.get("/files/clip.mp4?signature=wrong"))
        await inner.arrived.wait()
        right = asyncio.create_task(client.get("/files/clip.mp4?signature=right"))
        await came.wait()
        await turns()  # it waits for its place now
        inner.release.set()
        assert (await wrong).status_code == 403
        assert (await right).content == b"video"
