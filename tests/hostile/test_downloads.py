"""Downloads from hostile and broken servers, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_pipeline.errors import (
    DownloadFailed,
    MediaTooLarge,
    Stage,
)
from orchestrator.net.connections import Network
from serve_app.inputs.download_body import Downloaded
from serve_app.inputs.downloads import download
from tests.hostile.download_rig import (
    BODY,
    LOOPBACK,
    NO_CURL,
    ONCE,
    QUICK,
    assert_failed,
    assert_is_body,
    endless,
    fetch,
    needs_curl,
)
from tests.hostile.raw_server import Exchange, serve
from tests.waiting import turns

pytestmark = pytest.mark.usefixtures("no_waits", "no_child_is_left")


# --- good servers ---------------------------------------------------------------------------------


async def test_a_file_arrives_whole(target: Path) -> None:
    result, server = await fetch(lambda e: e.answer("200 OK", BODY), target)
    assert_is_body(result)
    (exchange,) = server.exchanges
    assert exchange.header("host") == f"127.0.0.1:{server.port}"
    assert exchange.header("accept-encoding") == "identity"


async def test_a_file_of_unknown_length_arrives_whole(target: Path) -> None:
    async def until_close(e: Exchange) -> None:
        await e.send("HTTP/1.0 200 OK\r\n\r\n", BODY)

    async def chunked(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BODY), 1000):
            piece = BODY[start : start + 1000]
            await e.send(f"{len(piece):x};ext=1\r\n", piece, "\r\n")
        await e.send("0\r\nTrailer: x\r\n\r\n")

    for script in (until_close, chunked):
        result, _ = await fetch(script, target)
        assert_is_body(result)


async def test_memory_does_not_grow_with_the_file(target: Path) -> None:
    block = os.urandom(1 << 20)

    async def script(e: Exchange) -> None:
        await e.send(f"HTTP/1.1 200 OK\r\nContent-Length: {64 << 20}\r\n\r\n")
        for _ in range(64):
            await e.send(block)

    tracemalloc.start()
    try:
        result, _ = await fetch(script, target, replace(QUICK, max_bytes=1 << 30))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(result, Downloaded) and result.size_bytes == 64 << 20
    assert peak_bytes < 16 << 20


async def test_an_earlier_file_is_replaced_only_by_a_complete_one(target: Path) -> None:
    target.write_bytes(b"before")
    async with serve(lambda e: e.answer("404 Not Found")) as server:
        with pytest.raises(DownloadFailed):
            await download(
                server.url(), target, policy=LOOPBACK, limits=QUICK, network=NO_CURL
            )  # fmt: skip
    assert target.read_bytes() == b"before"


# --- statuses and retries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("400 Bad Request", "Download failed: 400 Bad Request"),
        ("401 Unauthorized", "Download failed: 401 Unauthorized"),
        ("403 Forbidden", "Download failed: 403 Forbidden"),
        ("404 Not Found", "Download failed: 404 Not Found"),
        ("410 Gone", "Download failed: 410 Gone"),
        ("404 <script>alert(1)</script>", "Download failed: 404 Not Found"),
        ("299 Odd", "Download failed: 299 Unknown Status"),
        ("206 Partial Content", "Download failed: 206 Partial Content"),
        ("304 Not Modified", "Download failed: 304 Not Modified"),
        ("302 Found", "Download failed: 302 Found"),  # without a Location
        ("999 Denied", "Download failed: 999 Unknown Status"),
    ],
)
async def test_final_answers_are_asked_for_once(target: Path, status: str, message: str) -> None:
    result, server = await fetch(lambda e: e.answer(status, BODY), target)
    assert_failed(result, DownloadFailed, message)
    assert isinstance(result, DownloadFailed) and result.message == message
    assert result.details["status_code"] == int(status[:3])
    assert len(server.exchanges) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_passing_troubles_are_tried_three_times(target: Path, status: int) -> None:
    result, server = await fetch(lambda e: e.answer(f"{status} Trouble"), target)
    assert_failed(result, DownloadFailed, f"Download failed: {status} ")
    assert len(server.exchanges) == 3


async def test_the_third_attempt_may_succeed(target: Path) -> None:
    async def script(e: Exchange) -> None:
        if e.number == 0:
            await e.answer("503 Busy", BODY)
        elif e.number == 1:  # cut off in the middle: the next attempt starts from nothing
            await e.send("HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n", b"x" * 5000)
        else:
            await e.answer("200 OK", BODY)

    result, server = await fetch(script, target)
    assert_is_body(result)
    assert len(server.exchanges) == 3


async def test_a_refused_connection_is_a_failed_download(target: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        url = server.url()
    with pytest.raises(DownloadFailed, match="connection"):
        await download(url, target, policy=LOOPBACK, limits=QUICK, network=NO_CURL)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        ("204 No Content", b"", "the answer is empty"),
        ("200 OK", b"", "the answer is empty"),
        ("200 OK", b"x", "(1 bytes)"),
        ("200 OK", b"x" * 999, "(999 bytes)"),
    ],
)
async def test_empty_and_tiny_bodies_are_failures(
    target: Path, status: str, body: bytes, message: str
) -> None:
    result, _ = await fetch(lambda e: e.answer(status, body), target)
    assert_failed(result, DownloadFailed, message)


async def test_a_thousand_bytes_are_enough(target: Path) -> None:
    result, _ = await fetch(lambda e: e.answer("200 OK", b"x" * 1000), target)
    assert_is_body(result, b"x" * 1000)


# --- sizes and times ------------------------------------------------------------------------------


async def test_a_declared_size_over_the_limit_is_refused_unread(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n")
        await asyncio.Event().wait()  # a body would never come

    result, server = await fetch(script, target)
    assert_failed(result, MediaTooLarge, "larger than the limit of 1 MB")
    assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    ],
)
async def test_an_endless_body_ends_at_the_limit(target: Path, head: str) -> None:
    async def script(e: Exchange) -> None:
        await e.send(head)
        await endless(e)

    result, server = await fetch(script, target)
    assert_failed(result, MediaTooLarge, "larger than the limit")
    assert len(server.exchanges) == 1


async def test_a_body_of_exactly_the_limit_is_accepted(target: Path) -> None:
    body = b"x" * QUICK.max_bytes
    result, _ = await fetch(lambda e: e.answer("200 OK", body), target)
    assert_is_body(result, body)
    result, _ = await fetch(lambda e: e.answer("200 OK", body + b"x"), target.with_name("b"))
    assert_failed(result, MediaTooLarge, "larger")


async def test_a_server_that_stops_sending_is_given_up(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x" * 1000)
        await asyncio.Event().wait()

    result, server = await fetch(script, target, replace(QUICK, stall_s=0.1))
    assert_failed(result, DownloadFailed, "stopped sending")
    assert len(server.exchanges) == 3


@pytest.mark.parametrize("start", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n\r\n"])
async def test_a_trickle_does_not_outlast_the_attempt(target: Path, start: str) -> None:
    async def script(e: Exchange) -> None:
        await e.send(start or "HTTP/1.1 200 ")
        await e.trickle(0.02)

    result, server = await fetch(script, target, replace(QUICK, attempts=2, attempt_s=0.3))
    assert_failed(result, DownloadFailed, "within 0.3 s")
    assert len(server.exchanges) == 2


# Wants 1000 bytes a second on average; the trickles below send at most 50 on any machine.
PACED = replace(QUICK, attempts=2, stall_s=20, slow_s=0.3, min_bytes_per_s=1000)


@pytest.mark.parametrize(
    "start",
    ["HTTP/1.1 200 ", "HTTP/1.1 200 OK\r\nX-Long: ", "HTTP/1.0 200 OK\r\n\r\n",
     "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"],
)  # fmt: skip
async def test_a_trickle_is_too_slow(target: Path, start: str) -> None:
    """Mend 4.5: whether the status, the headers or the body come drop by drop."""

    async def script(e: Exchange) -> None:
        await e.send(start)
        await e.trickle(0.02)

    result, server = await fetch(script, target, PACED)
    assert_failed(result, DownloadFailed, "too slowly")
    assert isinstance(result, DownloadFailed) and "min_bytes_per_s" in str(result.hint)
    assert len(server.exchanges) == 2


async def test_a_trickle_behind_a_redirect_is_too_slow(target: Path) -> None:
    """Mend 4.5."""

    async def script(e: Exchange) -> None:
        if e.path == "/clip.mp4":
            await e.answer("302 Found", b"", "Location: /slow")
        else:
            await e.send("HTTP/1.0 200 OK\r\n\r\n")
            await e.trickle(0.02)

    result, _ = await fetch(script, target, replace(PACED, attempts=1))
    assert_failed(result, DownloadFailed, "too slowly")


@needs_curl
async def test_a_trickle_through_curl_is_too_slow(target: Path) -> None:
    """Mend 4.5: curl is given up and dead afterwards, as the fixture checks."""

    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 100000\r\n\r\n")
        await e.trickle(0.02)

    result, _ = await fetch(script, target, replace(PACED, attempts=1, slow_s=1.0), Network())
    assert_failed(result, DownloadFailed, "too slowly")


async def test_a_slow_disk_is_not_the_servers_fault(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mend 4.5: the time that writing takes is left out. The loop's clock jumps while it does."""
    body = os.urandom(3 << 20)
    loop = asyncio.get_running_loop()
    time, to_thread, skipped = loop.time, asyncio.to_thread, [0.0]

    async def slowly(*call: object) -> object:
        skipped[0] += 100.0
        await turns()  # timers that are due go off
        return await to_thread(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "time", lambda: time() + skipped[0])
    monkeypatch.setattr(asyncio, "to_thread", slowly)
    limits = replace(
        QUICK, max_bytes=4 << 20, total_s=1e4, attempt_s=1e4, slow_s=60, min_bytes_per_s=1
    )
    result, server = await fetch(lambda e: e.answer("200 OK", body), target, limits)
    assert_is_body(result, body)
    assert len(server.exchanges) == 1 and skipped[0] >= 300.0


async def test_all_attempts_together_have_a_deadline(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await asyncio.Event().wait()

    limits = replace(QUICK, attempts=1000, stall_s=0.05, total_s=0.5)
    result, _ = await fetch(script, target, limits)
    assert_failed(result, DownloadFailed, "within 0.5 s")


async def test_endless_headers_end(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\n")
        number = 0
        while True:
            number += 1
            await e.send(f"X-{number}: {'y' * 1000}\r\n")

    result, _ = await fetch(script, target, ONCE)
    assert_failed(result, DownloadFailed, "breaks the HTTP protocol")


# --- broken HTTP ----------------------------------------------------------------------------------

BROKEN = {
    "http 0.9": BODY,
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n" + BODY,
    "smtp": b"220 mail.example ESMTP\r\n\r\n" + BODY,
    "bad status": b"HTTP/1.1 two OK\r\n\r\n" + BODY,
    "no header end": b"HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n",
    "nothing": b"",
    "short body": b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + BODY,
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + BODY,
    "garbage chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "negative chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY,
    "chunk cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + BODY,
    "chunks not ended": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2800\r\n"
    + BODY
    + b"\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + BODY,
    "nul in header": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 30000\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answers_never_become_files(target: Path, name: str) -> None:
    async def script(e: Exchange) -> None:
        await e.send(BROKEN[name])

    result, _ = await fetch(script, target)
    assert isinstance(result, DownloadFailed), result
    assert result.stage is Stage.DOWNLOAD and not result.retryable


@needs_curl
@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answers_never_become_files_through_curl(target: Path, name: str) -> None:
    async def script(e: Exchange) -> None:
        await e.send(BROKEN[name])

    result, _ = await fetch(script, target, ONCE, Network())
    assert isinstance(result, DownloadFailed), result


async def test_bytes_after_the_declared_length_are_not_part_of_the_file(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n", BODY, b"y" * 5000)

    result, _ = await fetch(script, target)
    assert_is_body(result)
