"""A server that answers with exact bytes, at an exact pace, on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from tests.waiting import turns

Script = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request and the way to answer it. `head` is the request up to the empty line."""

    head: str
    number: int
    writer: asyncio.StreamWriter

    @property
    def path(self) -> str:
        return self.head.split(" ", 2)[1]

    def header(self, name: str) -> str | None:
        for line in self.head.splitlines()[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return None

    async def send(self, *parts: bytes | str) -> None:
        for part in parts:
            self.writer.write(part.encode() if isinstance(part, str) else part)
        await self.writer.drain()

    async def trickle(self, pause_s: float) -> None:
        """Send one byte after the other, without end."""
        while True:
            await self.send("a")
            await asyncio.sleep(pause_s)

    async def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        """Send a well-formed answer."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        await self.send("\r\n".join(lines), body)


@dataclass
class RawServer:
    """Runs `script` for every connection that sends a request head; keeps what it saw."""

    host: str = "127.0.0.1"
    port: int = 0
    scheme: str = "http"
    connections: int = 0
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)
    exchanges: list[Exchange] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    open: set[asyncio.Task[None]] = field(default_factory=set)  # connections

    def url(self, path: str = "/clip.mp4", host: str | None = None) -> str:
        return f"{self.scheme}://{host or self.host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def serve(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """Serve until the block ends; every connection is closed by then."""
    state = RawServer(host, scheme="https" if tls else "http")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        task = asyncio.current_task()
        assert task is not None
        state.open.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            exchange = Exchange(head, len(state.exchanges), writer)
            state.exchanges.append(exchange)
            answer = asyncio.ensure_future(script(exchange))
            gone = asyncio.ensure_future(reader.read(1))
            done, _ = await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                state.closed_by_client.set()
            for waiting in (answer, gone):
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await waiting
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            state.closed_by_client.set()
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except (OSError, asyncio.CancelledError):
                writer.transport.abort()  # the client may not read what is still to be sent
            finally:
                state.open.discard(task)

    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: state.server_names.append(name)
    server = await asyncio.start_server(handle, host, 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        await turns(5)  # a connection that is being accepted gets its task, which closes it
        for task in list(state.open):
            task.cancel()
        await asyncio.gather(*state.open, return_exceptions=True)
        await turns()  # aborted transports close in the next round of the loop
        await server.wait_closed()
