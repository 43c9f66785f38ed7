"""Downloads through curl, cancelled downloads, and what is left behind."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from musetalk_pipeline.errors import (
    DownloadFailed,
    MediaTooLarge,
    PipelineError,
    SourceRefused,
)
from orchestrator.net.connections import Network
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from tests.children import command_of
from tests.hostile.download_rig import (
    BODY,
    LOOPBACK,
    NO_CURL,
    ONCE,
    QUICK,
    answering,
    assert_failed,
    assert_is_body,
    endless,
    fetch,
    needs_curl,
    only_curl_reads_it,
)
from tests.hostile.raw_server import Exchange, RawServer, serve
from tests.waiting import until_async

pytestmark = pytest.mark.usefixtures("no_waits", "no_child_is_left")


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


# --- curl -----------------------------------------------------------------------------------------


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
        seen.extend(map(command_of, psutil.Process().children()))
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
