"""Connections that carry no request: heads that do not come, and too many of them (mend 4.1)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import uvicorn.config
import yaml

from serve_app.gate.callers import CallerRules
from serve_app.gate.http_protocol import ConnectionLimits, GuardedProtocol
from serve_app.gate.middleware import Gate
from serve_app.launcher.ray_cluster import PROXY_MIDDLEWARES
from tests.hostile.edge import Inner, caller, gated, head, raw, skip
from tests.waiting import turns, until_async

ROOT = Path(__file__).resolve().parents[2]
HURRIED = ConnectionLimits(head_s=0.3)
SHORT = ConnectionLimits(head_bytes=8192)


async def test_a_head_that_does_not_end_in_time_is_answered_408() -> None:
    """Mend 4.1: headers time out, however busily they dribble."""
    async with gated(Inner(), connections=HURRIED) as port, raw(port, b"GET / HTTP/1.1\r\n") as one:
        assert (await one.dribble(b"X-A: b\r\n")).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("first", [b"", b"\r\n"])
async def test_a_silent_connection_is_closed(first: bytes) -> None:
    async with gated(Inner(), connections=HURRIED) as port, raw(port, first) as connection:
        await connection.answer()  # ends, because the server closes


async def test_the_second_request_of_a_connection_has_the_same_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Empty lines between requests do not keep a connection either."""
    async with gated(Inner()) as port, raw(port, head("GET", "/hc")) as one:
        await one.reader.readuntil(b'{"status":"ok"}')
        await one.dribble(b"\r\n", lambda: skip(1.0, monkeypatch))  # ends: the server closes


async def test_a_request_under_way_has_no_deadline_of_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Inner()
    async with gated(inner) as port, caller(port) as client:
        answer = asyncio.create_task(client.post("/wait"))
        await inner.arrived.wait()
        skip(1.5 * ConnectionLimits().head_s, monkeypatch)
        await turns(5)  # what is due goes off
        inner.release.set()
        assert (await answer).status_code == 200


async def test_a_head_without_end_is_answered_431() -> None:
    """uvicorn collects a head of any size."""
    start = b"GET / HTTP/1.1\r\nX-A: " + b"x" * 20_000
    async with gated(Inner(), connections=SHORT) as port, raw(port, start) as connection:
        assert (await connection.answer()).startswith(b"HTTP/1.1 431 ")


async def test_a_head_without_end_behind_another_request_ends_the_connection() -> None:
    """A long job's connection is no way around the limit."""
    inner = Inner()
    async with gated(inner, connections=SHORT) as port, raw(port, head("GET", "/wait")) as one:
        await inner.arrived.wait()
        await one.send(b"GET / HTTP/1.1\r\nX-A: " + b"x" * 20_000)
        assert await one.answer() == b""
        inner.release.set()


async def test_trailers_are_dropped_and_have_no_size_to_grow_to() -> None:
    """Mend 4.1: the parser gives trailers as headers of a request that has been judged; 76 MB of
    them, sent by one client without a key, took 2 GB.
    """
    inner, rules = Inner(), CallerRules(ingress_api_key="right")
    chunked = head("POST", "/generate", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n"
    open_path = head("POST", "/hc", "Transfer-Encoding: chunked") + b"0\r\n"
    async with gated(inner, rules=rules) as port:
        async with raw(port, chunked + b"X-Internal-API-Key: right\r\n\r\n") as connection:
            assert (await connection.answer()).startswith(b"HTTP/1.1 401 ")
        async with raw(port, open_path) as connection:
            answer = asyncio.create_task(connection.answer())
            sent = 0
            with suppress(ConnectionError):
                while not answer.done():
                    await connection.send(b"a: b\r\n" * 10_000)
                    sent += 60_000
            assert await answer == b""
    assert sent < 16 << 20  # most of it in the sockets' buffers
    assert inner.count("/generate") == 0


async def test_requests_that_are_sent_at_once_are_few() -> None:
    """Mend 4.1: 13,000 in one packet were 13,000 requests in memory."""
    inner, limits = Inner(), ConnectionLimits(pipelined=3)
    async with gated(inner, connections=limits) as port:
        async with raw(port, head("GET", "/hc") * 4) as connection:
            for _ in range(4):
                await connection.reader.readuntil(b'{"status":"ok"}')
        async with raw(port, head("GET", "/hc") * 5) as connection:
            assert await connection.answer() == b""


async def test_a_body_is_never_the_next_request(caplog: pytest.LogCaptureFixture) -> None:
    """Where a request asks for another protocol the parser lets go of its body. Behind a proxy of
    this machine the body's text would be a request of a local caller.
    """
    inner = Inner()
    hidden = head("GET", "/smuggled")
    upgrade = ("Connection: Upgrade", "Upgrade: h2c")
    request = head("POST", "/generate", *upgrade, f"Content-Length: {len(hidden)}")
    async with gated(inner) as port:
        async with raw(port, request) as connection:
            with suppress(ConnectionError):
                await connection.send(hidden)
            answer = await connection.answer()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"without Upgrade" in answer
        caplog.clear()
        with caplog.at_level(logging.INFO, "uvicorn.error"):
            async with raw(port, head("GET", "/other", *upgrade)) as connection:
                await connection.reader.readuntil(b'{"client":')  # the header may be ignored
        assert not caplog.records  # uvicorn: "No supported WebSocket library", twice
    assert inner.count("/smuggled") == inner.count("/generate") == 0
    assert inner.count("/other") == 1


async def test_a_client_that_never_reads_is_cut_off() -> None:
    """Mend 4.2: also one that is sent no file, only answers that nobody waits for."""
    inner, limits = Inner(), ConnectionLimits(unread_s=0.3)
    async with gated(inner, connections=limits) as port, raw(port, receive_buffer=4096) as one:
        await one.send(head("GET", "/large"))
        await until_async(lambda: inner.sent_bytes >= 64 << 20, "the answer was not sent")
        with pytest.raises(ConnectionError):
            while True:  # until the server has cut the connection off
                await one.send(b"\r\n")
                await asyncio.sleep(0.02)


async def test_the_oldest_idle_connection_makes_room_for_a_new_one() -> None:
    """Mend 4.1: idle connections cannot use up the proxy's sockets."""
    inner = Inner()
    async with AsyncExitStack() as stack:
        limits = ConnectionLimits(connections=20)
        port = await stack.enter_async_context(gated(inner, connections=limits))
        busy = await stack.enter_async_context(raw(port, head("GET", "/wait")))
        await inner.arrived.wait()
        idle = [await stack.enter_async_context(raw(port)) for _ in range(60)]
        async with caller(port) as client:
            assert (await client.get("/hc")).status_code == 200
        assert await idle[0].answer() == b""
        inner.release.set()
        assert b" 200 " in await busy.reader.readuntil(b"\r\n\r\n")


# --- where Serve's proxy listens ------------------------------------------------------------------


@pytest.fixture
async def proxy_port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, Inner]]:
    """Ray's own function that opens the proxy's port, with our host and our callback."""
    from ray.serve._private import http_util
    from ray.serve.config import HTTPOptions

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "unset")
    monkeypatch.setattr(GuardedProtocol, "limits", ConnectionLimits())
    host = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["http_options"]["host"]
    variable = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    monkeypatch.setattr(http_util, variable, "serve_app.gate.middleware:proxy_middlewares")
    options = http_util.configure_http_options_with_defaults(HTTPOptions(host=host, port=port))
    options = http_util.configure_http_middlewares(options)
    inner = Inner()
    task, server = await http_util.start_asgi_http_server(
        inner, options, event_loop=asyncio.get_running_loop()
    )
    await until_async(lambda: server.started, "uvicorn has not started")
    assert server.config.http_protocol_class is GuardedProtocol
    yield port, inner
    server.should_exit = server.force_exit = True
    await task


def test_the_launcher_names_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend 4.1: what Serve's proxy is told at the start is there, and is a list of middlewares."""
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "unset")
    monkeypatch.setattr(GuardedProtocol, "limits", ConnectionLimits())
    callback = call_function_from_import_path(PROXY_MIDDLEWARES)
    [middleware] = validate_http_proxy_callback_return(callback)
    assert middleware.cls is Gate and middleware.kwargs["is_proxy"]


@pytest.mark.parametrize("file", ["serve_config.yaml", "serve_config.gpu.yaml"])
def test_the_configurations_bind_both_families(file: str) -> None:
    """Mend 1.14."""
    assert yaml.safe_load((ROOT / file).read_text())["http_options"]["host"] == "::"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_proxy_listens_on_both_families(
    proxy_port: tuple[int, Inner], address: str
) -> None:
    """Mend 1.14: Salad's gateway comes over IPv6, the queue worker over 127.0.0.1."""
    port, inner = proxy_port
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError as exc:
        if address == "::1":
            pytest.skip(f"this machine has no IPv6 loopback: {exc}")
        raise
    writer.write(head("POST", "/generate", "Content-Length: 0", "Connection: close"))
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    # An IPv4 peer shows in its IPv6 spelling; both count as this machine, or it were 403.
    assert inner.seen[-1]["client"][0] in (address, f"::ffff:{address}")
