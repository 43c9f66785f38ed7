"""Pure ASGI: one whole exchange with an application, headers, and clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope

Headers = list[tuple[bytes, bytes]]


class AnswerTooLarge(Exception):
    """An application sent more than the caller allowed."""


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A whole HTTP response in memory."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return the first header with that name, given in lower case."""
        return header(self.headers, name)


@dataclass
class _Collector:
    """Collects the messages of a response."""

    max_bytes: int
    status: int = 0
    headers: Headers = field(default_factory=list)
    body: list[bytes] = field(default_factory=list)
    n_bytes: int = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(k).lower(), bytes(v)) for k, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            data = message.get("body", b"")
            self.n_bytes += len(data)
            if self.n_bytes > self.max_bytes:
                raise AnswerTooLarge(f"more than {self.max_bytes} bytes")
            self.body.append(data)


async def call(app: ASGIApp, scope: Scope, max_bytes: int, body: bytes = b"") -> WholeAnswer:
    """Make one request with a small body and return the whole answer; status 0 if there was none.

    Raises:
        AnswerTooLarge: the answer is larger than `max_bytes`; the request has been cancelled.
    """
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # this client never disconnects by itself
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    collector = _Collector(max_bytes)
    await app(scope, receive, collector.send)
    return WholeAnswer(collector.status, collector.headers, b"".join(collector.body))


@contextlib.asynccontextmanager
async def disconnection(receive: Receive) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set when the client disconnects. Messages of the body are dropped."""
    disconnected = asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    watcher = asyncio.create_task(watch())
    try:
        yield disconnected
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first header with that name, given in lower case."""
    return next((bytes(value) for key, value in headers if bytes(key).lower() == name), None)
