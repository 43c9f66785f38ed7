"""Connections that carry no request: heads that do not come, and too many of them (mend 4.1)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvicorn.config
import yaml

from serve_app.gate import Gate
from serve_app.http_protocol import ConnectionLimits, GuardedProtocol
from serve_app.ray_cluster import PROXY_MIDDLEWARES
from tests.hostile.edge import Inner, caller, gated, head, raw, skip

ROOT = Path(__file__).resolve().parents[2]
HURRIED = ConnectionLimits(head_s=0.3)
SHORT = ConnectionLimits(head_bytes=8192)


async def test_a_head_that_does_not_end_in_time_is_answered_408() -> None:
    """Mend 4.1: headers time out, however busily they dribble."""
    async with gated(Inner(), connections=HURRIED) as port, raw(port, b"GET / HTTP/1.1\r\n") as one:
        answer = asyncio.create_task(one.answer())
        while not answer.done():
            await one.send(b"X-A: b\r\n")
            await asyncio.sleep(0.02)
        assert answer.result().startswith(b"HTTP/1.1 408 ")


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
        answer = asyncio.create_task(one.answer())
        while not answer.done():
            await one.send(b"\r\n")
            await asyncio.sleep(0.02)
            skip(1.0, monkeypatch)


async def test_a_request_under_way_has_no_deadline_of_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Inner()
    async with gated(inner) as port, caller(port) as client:
        answer = asyncio.create_task(client.post("/wait"))
        await inner.arrived.wait()
        skip(1.5 * ConnectionLimits().head_s, monkeypatch)
        for _ in range(5):
            await asyncio.sleep(0)  # what is due goes off
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
    monkeypatch.setattr(http_util, variable, "serve_app.gate:proxy_middlewares")
    options = http_util.configure_http_options_with_defaults(HTTPOptions(host=host, port=port))
    options = http_util.configure_http_middlewares(options)
    inner = Inner()
    task, server = await http_util.start_asgi_http_server(
        inner, options, event_loop=asyncio.get_running_loop()
    )
    while not server.started:
        await asyncio.sleep(0.005)
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
