"""Downloads from hostile and broken servers, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import hashlib
import io
import ipaddress
import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from musetalk_pipeline.errors import (
    DownloadFailed,
    MediaTooLarge,
    PipelineError,
    SourceRefused,
    Stage,
    StageFailed,
)
from serve_app.inputs.download_body import Downloaded, DownloadLimits
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from serve_app.net.connections import Network
from serve_app.telemetry.redact import RedactingFilter
from tests.hostile.raw_server import Exchange, RawServer, Script, serve
from tests.waiting import turns, until_async

BODY = bytes(range(256)) * 40
LOOPBACK = AddressPolicy(frozenset({"127.0.0.1"}))
pytestmark = pytest.mark.usefixtures("no_waits")
QUICK = DownloadLimits(max_bytes=1 << 20, total_s=30, attempt_s=20, connect_s=5, stall_s=5)
ONCE = replace(QUICK, attempts=1)
NO_CURL = Network(curl=None)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where the download goes; afterwards nothing but a complete file may be there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder / "clip.mp4"
    assert [entry.name for entry in folder.iterdir()] in ([], ["clip.mp4"])


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    assert not [child for child in psutil.Process().children() if child.name() == "curl"]


async def fetch(
    script: Script,
    target: Path,
    limits: DownloadLimits = QUICK,
    network: Network = NO_CURL,
) -> tuple[Downloaded | PipelineError, RawServer]:
    """Download from a server that follows `script`; return the result, or the error, and it."""
    async with serve(script) as server:
        try:
            result: Downloaded | PipelineError = await download(
                server.url(), target, policy=LOOPBACK, limits=limits, network=network
            )
        except PipelineError as error:
            result = error
            assert not target.exists()
        return result, server


def assert_is_body(result: Downloaded | PipelineError, body: bytes = BODY) -> None:
    assert isinstance(result, Downloaded), result
    assert result.path.read_bytes() == body
    assert result.size_bytes == len(body)
    assert result.sha256 == hashlib.sha256(body).hexdigest()


def assert_failed(
    result: Downloaded | PipelineError, kind: type[PipelineError], message: str
) -> None:
    assert type(result) is kind, result
    assert message in result.message
    assert result.stage is Stage.DOWNLOAD
    assert result.details["url"] and "?" not in str(result.details["url"])


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


async def endless(e: Exchange) -> None:
    while True:
        await e.send(b"x" * 65536)


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


# --- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "br", "zstd", "x, gzip"])
async def test_a_decompression_bomb_is_refused_while_it_is_small(target: Path, coding: str) -> None:
    bomb = gzip.compress(bytes(32 << 20))

    async def script(e: Exchange) -> None:
        await e.answer("200 OK", bomb, f"Content-Encoding: {coding}")

    result, server = await fetch(script, target)
    assert_failed(result, DownloadFailed, "compressed")
    assert len(server.exchanges) == 1


@pytest.mark.parametrize("coding", ["identity", "aws-chunked", "utf-8", "binary", ""])
async def test_a_coding_that_changes_no_bytes_is_ignored(target: Path, coding: str) -> None:
    bomb = gzip.compress(bytes(4 << 20))
    result, _ = await fetch(
        lambda e: e.answer("200 OK", bomb, f"Content-Encoding: {coding}"), target
    )
    assert_is_body(result, bomb)  # and nothing is ever unpacked


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "reference", ["/file", "file", "//{authority}/file", "http://{authority}/file"]
)
async def test_redirects_are_followed(target: Path, status: int, reference: str) -> None:
    async def script(e: Exchange) -> None:
        if e.path == "/file":
            await e.answer("200 OK", BODY)
            return
        where = reference.format(authority=e.header("host"))
        await e.answer(f"{status} Moved", b"<html>moved</html>", f"Location: {where}")

    result, server = await fetch(script, target)
    assert_is_body(result)
    assert [e.path for e in server.exchanges] == ["/clip.mp4", "/file"]


async def test_redirect_loops_end(target: Path) -> None:
    result, server = await fetch(lambda e: e.answer("302 Found", b"", "Location: /again"), target)
    assert_failed(result, DownloadFailed, "more than 5 redirects")
    assert len(server.exchanges) == 6


HOSTILE_REDIRECTS = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.2:{port}/",
    "http://2130706434:{port}/",
    "http://0x7f000002:{port}/",
    "http://0177.0.0.2:{port}/",
    "http://0:{port}/",
    "http://user@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.org/",
    "//10.0.0.1/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1/clip.mp4",
    "gopher://127.0.0.1:{port}/_GET",
    "data:video/mp4;base64,AAAA",
    "http://[::1%25lo]:{port}/",
    "http://\u0000/",
]


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
@pytest.mark.parametrize("reference", HOSTILE_REDIRECTS)
async def test_redirects_to_forbidden_places_are_refused(
    target: Path, reference: str, curl: str | None
) -> None:
    """With curl, the redirect itself is in an answer that only curl can read."""

    async def script(e: Exchange) -> None:
        where = reference.format(port=(e.header("host") or "").partition(":")[2])
        broken = "Bad Name: x\r\n" if curl else ""
        await e.send(
            f"HTTP/1.1 302 Found\r\n{broken}Content-Length: 0\r\nLocation: {where}\r\n\r\n"
        )

    result, server = await fetch(script, target, ONCE, Network(curl=curl))
    if "\u0000" in reference:  # no HTTP at all; what a client makes of it is its own affair
        assert isinstance(result, DownloadFailed | SourceRefused)
        return
    assert_failed(result, SourceRefused, "Source refused")
    assert len(server.exchanges) == (2 if curl else 1)


async def test_a_redirect_inside_is_refused_though_the_first_host_is_trusted(target: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY), host="127.0.0.2") as inside:
        policy = AddressPolicy(frozenset({"localhost"}))

        async def script(e: Exchange) -> None:
            await e.answer("302 Found", b"", f"Location: {inside.url()}")

        async with serve(script) as outside:
            with pytest.raises(SourceRefused, match="loopback"):
                await download(
                    outside.url(host="localhost"), target, policy=policy, limits=QUICK
                )  # fmt: skip
        assert inside.connections == 0


# --- names ----------------------------------------------------------------------------------------


def answering(*answers: str | list[str]) -> tuple[Network, list[str]]:
    """Return a network whose DNS gives these answers in turn, and the list of what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [ipaddress.ip_address(a) for a in ([answer] if isinstance(answer, str) else answer)]

    return Network(resolve=resolve, curl=None), asked


async def test_a_name_is_resolved_once_and_that_address_is_connected_to(target: Path) -> None:
    """DNS rebinding: the second answer would lead inside, so nobody may ask twice."""
    network, asked = answering("127.0.0.1", "127.0.0.2")
    async with (
        serve(lambda e: e.answer("200 OK", b"inside" * 500), host="127.0.0.2"),
        serve(lambda e: e.answer("200 OK", BODY)) as outside,
    ):
        url = outside.url(host="media.example")
        result = await download(url, target, policy=LOOPBACK, limits=QUICK, network=network)
    assert_is_body(result)
    assert asked == ["media.example"]
    assert outside.exchanges[0].header("host") == f"media.example:{outside.port}"


async def test_every_attempt_and_every_hop_is_judged_anew(target: Path) -> None:
    network, asked = answering("127.0.0.1", "127.0.0.2")
    async with serve(lambda e: e.answer("503 Busy")) as outside:
        with pytest.raises(SourceRefused):
            await download(
                outside.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
    assert asked == ["media.example"] * 2 and len(outside.exchanges) == 1

    network, asked = answering("127.0.0.1", "169.254.169.254")
    async with serve(lambda e: e.answer("302 Found", b"", "Location: /b")) as outside:
        with pytest.raises(SourceRefused, match="link-local"):
            await download(
                outside.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
    assert len(outside.exchanges) == 1


async def test_a_dead_address_is_passed_over_for_the_next(target: Path) -> None:
    policy = AddressPolicy(frozenset({"127.0.0.0/8"}))
    network, _ = answering(["127.0.0.3", "127.0.0.1"])
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        result = await download(
            server.url(host="media.example"), target, policy=policy, limits=ONCE, network=network
        )
    assert_is_body(result)


async def test_a_name_that_does_not_resolve_is_a_failed_download(target: Path) -> None:
    asked = 0

    async def resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("no such name")
        if asked == 2:
            return []
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DownloadFailed, match="could not be resolved"):
        await download(
            "http://nowhere.example/", target, policy=LOOPBACK,
            limits=replace(QUICK, connect_s=0.05), network=Network(resolve=resolve, curl=None),
        )  # fmt: skip
    assert asked == 3


async def test_proxies_of_the_environment_are_not_used(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(lambda e: e.answer("200 OK", b"proxy" * 500)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        result, _ = await fetch(lambda e: e.answer("200 OK", BODY), target)
        assert_is_body(result)
        if shutil.which("curl"):
            result, _ = await fetch(only_curl_reads_it, target, ONCE, Network())
            assert_is_body(result)
        assert proxy.connections == 0


# --- TLS ------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of this test, and servers that it vouches for."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "ca.pem"
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._certificate(self._name, self._key, [], is_authority=True)
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server_context(self, *names: str, is_expired: bool = False) -> ssl.SSLContext:
        """Return the TLS side of a server that may call itself these `names`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._certificate(subject, key, list(names), is_expired=is_expired)
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[str],
        *,
        is_authority: bool = False,
        is_expired: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * day)
            .not_valid_after(now - day if is_expired else now + day)
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority(tmp_path / "ca")


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
async def test_the_certificate_is_checked_against_the_name_not_the_address(
    target: Path, authority: Authority, curl: str | None
) -> None:
    network = replace(answering("127.0.0.1")[0], ca_file=authority.ca_file, curl=curl)
    script = only_curl_reads_it if curl else lambda e: e.answer("200 OK", BODY)
    async with serve(script, tls=authority.server_context("media.example")) as server:
        result = await download(
            server.url(host="media.example"), target, policy=LOOPBACK, limits=ONCE, network=network
        )
        assert_is_body(result)
        assert set(server.server_names) == {"media.example"}
        with pytest.raises(DownloadFailed, match="certificate"):
            await download(
                server.url(host="other.example"), target.with_name("clip.mp4"), policy=LOOPBACK,
                limits=ONCE, network=network,
            )  # fmt: skip


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "other name"])
async def test_a_bad_certificate_is_refused_and_not_tried_again(
    target: Path, authority: Authority, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "other").mkdir()
    trusted = Authority(tmp_path / "other") if fault == "unknown authority" else authority
    names = ("other.example",) if fault == "other name" else ("media.example",)
    context = authority.server_context(*names, is_expired=fault == "expired")
    network = replace(answering("127.0.0.1")[0], ca_file=trusted.ca_file)
    async with serve(lambda e: e.answer("200 OK", BODY), tls=context) as server:
        with pytest.raises(DownloadFailed, match="certificate is not valid"):
            await download(
                server.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
        assert server.server_names == ["media.example"]


async def test_a_server_that_does_not_speak_tls_is_a_failed_download(target: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        url = server.url().replace("http:", "https:")
        with pytest.raises(DownloadFailed):
            limits = replace(ONCE, connect_s=0.3)
            await download(url, target, policy=LOOPBACK, limits=limits, network=NO_CURL)


# --- curl -----------------------------------------------------------------------------------------


async def only_curl_reads_it(e: Exchange) -> None:
    """A header name with a space: seen from CDNs, refused by h11, taken by curl."""
    await e.send(f"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: {len(BODY)}\r\n\r\n", BODY)


@needs_curl
async def test_curl_reads_what_strict_clients_refuse(target: Path) -> None:
    result, server = await fetch(only_curl_reads_it, target, ONCE, Network())
    assert_is_body(result)
    assert len(server.exchanges) == 2
    assert server.exchanges[1].header("host") == f"127.0.0.1:{server.port}"
    assert server.exchanges[1].header("accept-encoding") == "identity"


@pytest.mark.parametrize("curl", [None, "no-such-program"])
async def test_without_curl_a_broken_answer_is_a_plain_failure(
    target: Path, curl: str | None
) -> None:
    result, _ = await fetch(only_curl_reads_it, target, QUICK, Network(curl=curl))
    assert_failed(result, DownloadFailed, "breaks the HTTP protocol")


@needs_curl
async def test_curl_is_pinned_to_the_judged_address(target: Path) -> None:
    network = replace(answering("127.0.0.1", "127.0.0.2")[0], curl="curl")
    async with serve(only_curl_reads_it) as server:
        # This name resolves for nobody but the test, so curl cannot have asked.
        url = server.url(host="media.example")
        result = await download(url, target, policy=LOOPBACK, limits=ONCE, network=network)
    assert_is_body(result)
    assert server.exchanges[1].header("host") == f"media.example:{server.port}"


@needs_curl
async def test_curl_reads_addresses_of_ip_version_6(target: Path) -> None:
    policy = AddressPolicy(frozenset({"::1"}))
    async with serve(only_curl_reads_it, host="::1") as server:
        url = server.url(host="[::1]")
        result = await download(url, target, policy=policy, limits=ONCE)
        assert_is_body(result)
        network = replace(answering("::1")[0], curl="curl")
        url = server.url(host="media.example")
        result = await download(url, target, policy=policy, limits=ONCE, network=network)
        assert_is_body(result)


@needs_curl
@pytest.mark.parametrize("declared", [True, False])
async def test_curl_stops_at_the_size_limit(target: Path, declared: bool) -> None:
    async def script(e: Exchange) -> None:
        length = "Content-Length: 9999999999\r\n" if declared else ""
        await e.send(f"HTTP/1.1 200 OK\r\nBad Name: x\r\n{length}\r\n")
        await endless(e)

    result, _ = await fetch(script, target, ONCE, Network())
    assert_failed(result, MediaTooLarge, "larger than the limit")


@needs_curl
async def test_curl_is_killed_when_the_server_stops_sending(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 5000\r\n\r\n", b"x" * 1000)
        await asyncio.Event().wait()

    result, _ = await fetch(script, target, replace(ONCE, stall_s=0.3), Network())
    assert_failed(result, DownloadFailed, "stopped sending")


@needs_curl
async def test_curl_reports_statuses_like_the_first_client(target: Path) -> None:
    async def script(e: Exchange) -> None:
        await e.send("HTTP/1.1 404 Gone\r\nBad Name: x\r\nContent-Length: 5\r\n\r\nsorry")

    result, server = await fetch(script, target, QUICK, Network())
    assert_failed(result, DownloadFailed, "Download failed: 404 Not Found")
    assert len(server.exchanges) == 2


@needs_curl
async def test_the_url_is_not_on_curls_command_line(target: Path) -> None:
    """Command lines can be read by everybody on the machine; the query may be a signature."""
    seen: list[list[str]] = []

    async def script(e: Exchange) -> None:
        seen.extend(child.cmdline() for child in psutil.Process().children())
        await only_curl_reads_it(e)

    async with serve(script) as server:
        url = server.url("/clip.mp4?sig=very-secret")
        await download(url, target, policy=LOOPBACK, limits=ONCE)
    assert any("curl" in line[0] for line in seen if line)
    assert not any("very-secret" in word for line in seen for word in line)
    assert server.exchanges[1].path == "/clip.mp4?sig=very-secret"


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
async def test_a_cancelled_download_closes_its_connection_and_leaves_nothing(
    target: Path, curl: str | None
) -> None:
    started = asyncio.Event()

    async def script(e: Exchange) -> None:
        broken = "Bad Name: x\r\n" if curl else ""
        await e.send(f"HTTP/1.1 200 OK\r\n{broken}Content-Length: 500000\r\n\r\n", b"x" * 9999)
        if not curl or e.number == 1:
            started.set()
        await asyncio.Event().wait()

    async with serve(script) as server:
        task = asyncio.create_task(
            download(
                server.url(), target, policy=LOOPBACK, limits=QUICK, network=Network(curl=curl)
            )
        )
        await asyncio.wait_for(started.wait(), 20)
        server.closed_by_client.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        await asyncio.wait_for(server.closed_by_client.wait(), 10)
    assert list(target.parent.iterdir()) == []


# --- file:// --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An allowed folder with a good file in it, and a forbidden one beside it."""
    allowed, forbidden = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed, forbidden):
        folder.mkdir()
        (folder / "clip ü.mp4").write_bytes(BODY)
    (allowed / "sub").mkdir()
    (allowed / "sub" / "b.mp4").write_bytes(BODY)
    (allowed / "inside").symlink_to(allowed / "sub" / "b.mp4")
    (allowed / "escape").symlink_to(forbidden / "clip ü.mp4")
    (allowed / "door").symlink_to(forbidden)
    os.mkfifo(allowed / "pipe")
    (allowed / "zero").symlink_to("/dev/zero")
    return allowed, forbidden


async def take(url: str, target: Path, *allowed: Path) -> Downloaded:
    return await download(
        url, target, policy=AddressPolicy(), limits=QUICK, allowed_folders=allowed
    )


@pytest.mark.parametrize(
    "path", ["/clip%20%C3%BC.mp4", "/sub/b.mp4", "/inside", "/sub/../sub/b.mp4", "//sub//b.mp4"]
)
@pytest.mark.parametrize("start", ["file://", "file://localhost", "FILE://"])
async def test_files_in_an_allowed_folder_are_copied(
    target: Path, folders: tuple[Path, Path], path: str, start: str
) -> None:
    result = await take(f"{start}{folders[0]}{path}", target, folders[0])
    assert_is_body(result)
    assert not target.is_symlink() and target.stat().st_nlink == 1


@pytest.mark.parametrize(
    "url",
    [
        "file://{forbidden}/clip%20%C3%BC.mp4",
        "file://{allowed}/../allowed-not/clip%20%C3%BC.mp4",
        "file://{allowed}/%2e%2e/allowed-not/clip%20%C3%BC.mp4",
        "file://{allowed}/escape",
        "file://{allowed}/door/clip%20%C3%BC.mp4",
        "file://{allowed}/pipe",
        "file://{allowed}/zero",
        "file://{allowed}",
        "file://{allowed}/",
        "file://{allowed}/sub",
        "file://{allowed}/sub/b.mp4?x",
        "file://{allowed}/sub/b.mp4#x",
        "file://{allowed}/sub/b.mp4%00.mp4",
        "file://{allowed}/sub/b.mp4%FF",
        "file://example.org{allowed}/sub/b.mp4",
        "file://user@localhost{allowed}/sub/b.mp4",
        "file://127.0.0.1{allowed}/sub/b.mp4",
        "file:{allowed}/../allowed-not/clip%20%C3%BC.mp4",
        "file:sub/b.mp4",
        "file:",
        "file://",
        "file:///",
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "file://[/x",
        "file://{allowed}/\ud800",
    ],
)
async def test_files_outside_are_refused(
    target: Path, folders: tuple[Path, Path], url: str
) -> None:
    allowed, forbidden = folders
    with pytest.raises(SourceRefused):
        await take(url.format(allowed=allowed, forbidden=forbidden), target, allowed)


async def test_without_allowed_folders_every_file_is_refused(
    target: Path, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(SourceRefused, match="operator allows"):
        await take(f"file://{folders[0]}/sub/b.mp4", target)


async def test_a_missing_file_is_a_failed_download(
    target: Path, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(DownloadFailed, match="does not exist") as caught:
        await take(f"file://{folders[0]}/missing.mp4", target, folders[0])
    assert caught.value.hint and "Check the path" in caught.value.hint


async def test_sizes_of_files_are_limited_too(target: Path, folders: tuple[Path, Path]) -> None:
    for name, size in (("empty", 0), ("tiny", 999), ("huge", QUICK.max_bytes + 1)):
        with (folders[0] / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(DownloadFailed, match="empty"):
        await take(f"file://{folders[0]}/empty", target, folders[0])
    with pytest.raises(DownloadFailed, match="999 bytes"):
        await take(f"file://{folders[0]}/tiny", target, folders[0])
    with pytest.raises(MediaTooLarge):
        await take(f"file://{folders[0]}/huge", target, folders[0])


# --- what is left behind --------------------------------------------------------------------------


async def test_descriptors_and_tasks_stay_flat(target: Path) -> None:
    """Good, broken, cut-off and cancelled downloads, some through curl, again and again."""

    async def script(e: Exchange) -> None:
        if e.number % 4 == 0:
            await e.answer("200 OK", BODY)
        elif e.number % 4 == 1:
            await only_curl_reads_it(e)
        elif e.number % 4 == 2:
            await e.send("HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", BODY)
        else:
            await asyncio.sleep(0.05)

    async def once(server: RawServer) -> None:
        task = asyncio.create_task(download(server.url(), target, policy=LOOPBACK, limits=ONCE))
        await asyncio.wait([task], timeout=0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    process = psutil.Process()
    async with serve(script) as server:
        for _ in range(8):
            await once(server)
        await until_async(lambda: not server.open, "a connection is still open")
        before = process.num_fds()
        for _ in range(40):
            await once(server)
        await until_async(
            lambda: process.num_fds() <= before + 2,  # the server's side may still be closing
            lambda: f"{process.num_fds()} descriptors have not become {before}",
        )
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []


# --- disks and secrets ----------------------------------------------------------------------------


async def test_a_target_that_cannot_be_written_is_this_workers_fault(tmp_path: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        with pytest.raises(StageFailed, match="disk") as failed:
            await download(
                server.url(), tmp_path / "missing" / "clip.mp4", policy=LOOPBACK, limits=QUICK
            )
    assert failed.value.retryable and failed.value.stage is Stage.DOWNLOAD


FULL_DISK = """
import asyncio, json, os, sys
from pathlib import Path
from musetalk_pipeline.errors import PipelineError
from serve_app.net.addresses import AddressPolicy
from serve_app.inputs.download_body import DownloadLimits
from serve_app.inputs.downloads import download
try:
    asyncio.run(download(sys.argv[1], Path("/mnt/clip.mp4"), policy=AddressPolicy(),
                         limits=DownloadLimits(), allowed_folders=[Path(sys.argv[2])]))
except PipelineError as error:
    print(json.dumps([error.code, error.message, os.listdir("/mnt")]))
"""


def test_a_full_disk_is_named_and_left_clean(tmp_path: Path) -> None:
    """A real one: a file system of 64 KiB in a mount namespace of its own."""
    (tmp_path / "clip.mp4").write_bytes(bytes(1 << 20))
    script = 'mount -t tmpfs -o size=64k tmpfs /mnt && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    trial = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    if trial.returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*command, sys.executable, "-c", FULL_DISK, f"file://{tmp_path}/clip.mp4", str(tmp_path)],
        capture_output=True, timeout=60, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    code, message, left = json.loads(done.stdout)
    assert code == "stage_failed" and "disk is full" in message and left == []


@contextlib.asynccontextmanager
async def everything_logged() -> AsyncIterator[io.StringIO]:
    """Collect what the whole process logs at DEBUG through the filter that handlers get."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


SIGNED = "/clip.mp4?X-Amz-Credential=AKIA-one&X-Amz-Signature=0123abcdef&token=t0p"


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
@pytest.mark.parametrize("end", ["200 OK", "403 Forbidden", "503 Busy"])
async def test_signatures_are_in_no_log_and_no_error(
    target: Path, end: str, curl: str | None
) -> None:
    async def script(e: Exchange) -> None:
        if e.number == 0:
            await e.answer("302 Found", b"", f"Location: /next{SIGNED[9:]}")
        elif curl and end.startswith("200"):
            await only_curl_reads_it(e)
        else:
            await e.answer(end, BODY)

    text = ""
    async with everything_logged() as stream, serve(script) as server:
        try:
            await download(
                server.url(SIGNED), target, policy=LOOPBACK, limits=QUICK,
                network=Network(curl=curl),
            )  # fmt: skip
        except PipelineError as error:
            text = f"{error!r} {error} {error.details}"
    text += stream.getvalue()
    assert "next" in text  # something was logged
    for secret in ("AKIA-one", "0123abcdef", "t0p"):
        assert secret not in text


async def test_own_log_lines_hold_no_query_even_without_the_filter(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="serve_app")
    async with serve(lambda e: e.answer("503 Busy")) as server:
        with pytest.raises(DownloadFailed):
            await download(
                server.url(SIGNED), target, policy=LOOPBACK, limits=QUICK, network=NO_CURL
            )  # fmt: skip
    records = [
        str(vars(record)) for record in caplog.records if record.name.startswith("serve_app")
    ]
    assert len(records) == QUICK.attempts
    assert not any("0123abcdef" in record for record in records)


# --- what to do about it --------------------------------------------------------------------------


def hint_of(error: BaseException) -> str:
    assert isinstance(error, PipelineError) and error.hint is not None
    return error.hint


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?X-Amz-Signature=abc&X-Amz-Expires=60", "Sign it again"),
        ("?se=2026-01-01&sp=r&sig=abc", "Sign it again"),
        ("?Expires=1&Key-Pair-Id=x", "Sign it again"),
        ("?Authorization=x", "Sign it again"),
        ("?design=2&assigned=3", ""),
        ("", ""),
    ],
)
async def test_a_signed_link_may_have_expired(
    target: Path, status: str, query: str, said: str
) -> None:
    """Mend 2.6: the message stays the contract's, the hint says what to do."""
    async with serve(lambda e: e.answer(status)) as server:
        with pytest.raises(DownloadFailed) as failed:
            await download(
                server.url("/clip.mp4" + query), target, policy=LOOPBACK, limits=QUICK,
                network=NO_CURL,
            )  # fmt: skip
    assert failed.value.message == f"Download failed: {status}"
    hint = hint_of(failed.value)
    assert said in hint and ("Sign it again" in hint) == bool(said)


async def test_a_private_address_names_the_setting(target: Path) -> None:
    """Mend 2.6."""
    with pytest.raises(SourceRefused) as refused:
        await download("http://10.0.0.1/a", target, policy=AddressPolicy(), limits=QUICK)
    hint = hint_of(refused.value)
    assert "ALLOWED_SOURCE_HOSTS" in hint and "inputs.allowed_hosts" in hint


async def test_a_file_outside_names_the_setting(target: Path) -> None:
    """Mend 2.6."""
    for url, said in (
        ("file:///etc/hostname", "LIPSYNC_ALLOWED_FOLDERS"),
        ("file:///etc/hostname", "inputs.allowed_folders"),
        ("file://tmp/a.mp4", "three slashes"),
    ):
        with pytest.raises(SourceRefused) as refused:
            await download(url, target, policy=AddressPolicy(), limits=QUICK)
        assert said in hint_of(refused.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/tmp/a.mp4", "file:///tmp/a.mp4"),
        ("C:\\a.mp4", "file:///C:/a.mp4"),
        ("c:/my clips/a.mp4", "file:///c:/my%20clips/a.mp4"),
        ("~/a.mp4", "file:///folder/a.mp4"),
        ("./clips/a.mp4", "file:///folder/a.mp4"),
        ("a.mp4", "https://"),
        ("ftp://host/a.mp4", "https://"),
    ],
)
async def test_a_plain_path_is_told_how_to_write_it(target: Path, path: str, said: str) -> None:
    """Mend 2.6."""
    with pytest.raises(SourceRefused) as refused:
        await download(path, target, policy=AddressPolicy(), limits=QUICK)
    assert said in hint_of(refused.value)
