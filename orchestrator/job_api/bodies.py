"""Reads request bodies before they reach a route, within a size, a rate and a deadline.

A route therefore never waits for a slow sender, and never has more in memory than the limit.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

# The only route whose bodies are larger than others: 500 jobs with signed addresses.
BATCHES_PATH = "/v1/avatar/batches"
LINGER_BYTES = 8 << 20  # read of a client that has its answer already
LINGER_S = 2.0  # for a client that has its answer to stop sending
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class BodyTooLarge(Exception):
    """The body, or its declared length, is larger than the limit."""


class BodyTooSlow(Exception):
    """The body did not arrive in time, or its place was given to a newer request."""


class ClientGone(Exception):
    """The client closed its connection before its body was complete."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large and how slow a body may be. By default the slowest body allowed takes 30 s."""

    max_bytes: int = 64 * 1024
    grace_s: float = 5.0  # before the rate applies
    bytes_per_s: float = 1024.0
    whole_s: float = 30.0
    concurrent: int = 512  # one more ends the oldest unfinished one


# A few at once are read, since each of them may take some of the memory.
BATCH_BODIES = BodyLimits(
    max_bytes=4 * 1024 * 1024, bytes_per_s=64 * 1024.0, whole_s=60.0, concurrent=8
)


class Bodies:
    """Reads bodies. They wait here and occupy no place of the application behind."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self.max_bytes = limits.max_bytes
        self._unfinished: OrderedDict[asyncio.Timeout, None] = OrderedDict()

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            BodyTooLarge: it is larger than the limit; the rest has not been read.
            BodyTooSlow: it arrived too slowly; the rest has not been read.
            ClientGone: the client has disconnected.
        """
        if (declared_bytes(scope) or 0) > self._limits.max_bytes:
            raise BodyTooLarge
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = asyncio.timeout_at(began + self._limits.grace_s)
        try:
            async with deadline:
                self._enter(deadline, loop.time())
                return await self._collect(receive, deadline, began)
        except TimeoutError:
            raise BodyTooSlow from None
        finally:
            self._unfinished.pop(deadline, None)

    def _enter(self, deadline: asyncio.Timeout, now: float) -> None:
        while len(self._unfinished) >= self._limits.concurrent:
            # An honest body arrives right after its headers, so the one that has waited longest
            # is the least likely to be honest.
            oldest, _ = self._unfinished.popitem(last=False)
            if not oldest.expired():
                oldest.reschedule(now)
        self._unfinished[deadline] = None

    async def _collect(self, receive: Receive, deadline: asyncio.Timeout, began: float) -> bytes:
        limits = self._limits
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limits.max_bytes:
                raise BodyTooLarge
            if not message.get("more_body", False):
                return bytes(body)
            if deadline in self._unfinished:  # otherwise a newer request has ended it
                earned_s = limits.grace_s + len(body) / limits.bytes_per_s
                deadline.reschedule(began + min(earned_s, limits.whole_s))


def declared_bytes(scope: Scope) -> int | None:
    """Return `Content-Length`; None if the request does not have it."""
    value = _header(scope, b"content-length")
    return int(value) if value is not None and value.isdigit() else None


def has_body(scope: Scope) -> bool:
    """Whether the headers of a request announce a body."""
    return bool(declared_bytes(scope)) or (_header(scope, b"transfer-encoding") is not None)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields `body` first, and then the client's further messages."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return whole.pop() if whole else await receive()

    return receive_again


async def send_early(response: Response, receive: Receive, send: Send, linger_s: float) -> None:
    """Send an answer to a client that may still be sending the body of its request."""
    # The rest of the body would be read as the next request, so the connection must end. A client
    # that is still writing would lose the answer if it ended at once.
    response.headers["connection"] = "close"
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await _drain(receive, LINGER_BYTES, linger_s)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive, max_bytes: int, seconds: float) -> None:
    """Read and drop what a rejected client is still sending, so that it can read its answer."""
    seen = 0
    try:
        async with asyncio.timeout(seconds):
            while seen <= max_bytes:
                message = await receive()
                seen += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), None)
