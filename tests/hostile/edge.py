"""A gate on a real socket with a small application behind it, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gate.callers import CallerRules
from serve_app.gate.http_protocol import ConnectionLimits, GuardedProtocol
from serve_app.gate.middleware import AccessCheck, Gate, GateLimits
from tests.waiting import until_async

# A gate answers 503 if the application behind it, when it is asked for the first time, does not say
# within 2 s that it is ready. Tests of anything else wait.
PATIENT = GateLimits(first_probe_s=30.0)


@dataclass
class Inner:
    """Stands where Serve's proxy is: without a route at first, then silent, then ready."""

    state: str = "ready"  # absent | silent | ready
    folder: Path | None = None
    seen: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sent_bytes: int = 0
    under_way: int = 0  # requests that have not been answered to the end
    release: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        self.under_way += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.under_way -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._response(scope, receive)

        async def counting(message):  # type: ignore[no-untyped-def]
            self.sent_bytes += len(message.get("body", b""))
            await send(message)

        await response(scope, receive, counting)

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        path = scope["path"]
        if self.state == "absent":
            return PlainTextResponse(f"Path '{path}' not found.", 404)
        if self.state == "silent":
            await self.release.wait()
        if path in ("/hc", "/health"):
            return JSONResponse({"status": "ok"})
        if path.startswith("/files/") and self.folder is not None:
            file = self.folder / path.removeprefix("/files/")
            return FileResponse(file) if file.is_file() else JSONResponse({"code": "none"}, 404)
        if path == "/wait":
            self.arrived.set()
            await self.release.wait()
        if path == "/large":
            return Response(bytes(64 << 20))
        self.bodies.append(await Request(scope, receive).body())
        return JSONResponse({"client": list(scope["client"])})

    def count(self, path: str) -> int:
        """Return how many requests came for a path."""
        return sum(scope["path"] == path for scope in self.seen)


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, limits: ConnectionLimits | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve `app` by uvicorn and the proxy's protocol; the port."""

    class Protocol(GuardedProtocol):
        pass

    Protocol.limits = limits or ConnectionLimits()
    config = uvicorn.Config(
        app, host=host, port=0, http=Protocol, log_level="critical", ws="none", lifespan="off"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until_async(lambda: server.started, "uvicorn has not started")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


@contextlib.asynccontextmanager
async def gated(
    inner: ASGIApp,
    limits: GateLimits = PATIENT,
    connections: ConnectionLimits | None = None,
    rules: AccessCheck | None = None,
) -> AsyncIterator[int]:
    """Serve `inner` behind the proxy's gate; the port."""
    gate = Gate(inner, rules or CallerRules(), limits, is_proxy=True)
    async with listening(gate, connections) as port:
        yield port


@contextlib.asynccontextmanager
async def caller(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A well-behaved client."""
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as client:
        yield client


class Raw:
    """A connection whose bytes a test chooses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        """Return all that comes until the server closes."""
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while data := await self.reader.read(65536):
                found += data
        return found

    async def dribble(self, bit: bytes, meanwhile: Callable[[], None] = lambda: None) -> bytes:
        """Send `bit` again and again; return all that comes until the server closes."""
        answer = asyncio.create_task(self.answer())
        while not answer.done():
            with contextlib.suppress(ConnectionError):  # it has closed just now
                await self.send(bit)
            await asyncio.wait({answer}, timeout=0.02)
            meanwhile()
        return answer.result()

    def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def raw(
    port: int, first: bytes = b"", receive_buffer: int | None = None
) -> AsyncIterator[Raw]:
    """Open a connection and send `first` on it."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    connection = Raw(*await asyncio.open_connection(sock=sock, limit=1024))
    try:
        await connection.send(first)
        yield connection
    finally:
        connection.close()


def head(method: str, path: str, *headers: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def skip(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop's clock jump: what is due within that time is due now, on any machine."""
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + seconds)
