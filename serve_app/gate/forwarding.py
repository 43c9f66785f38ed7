"""The answer to a request that was forwarded: in time, and with our own shape of errors.

Serve's proxy answers some errors itself, in plain text: no application at that route, every replica
full, a replica that died. Clients receive these as any other temporary error: 503 with our JSON.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.types import Message, Send

from serve_app.gate.asgi import Headers, header

logger = logging.getLogger("ray.serve")

_SERVES_OWN = frozenset({404, 408, 429, 503})


def is_serves_own(status: int, headers: Headers) -> bool:
    """Whether an answer is Serve's own: the application's errors are JSON."""
    kind = header(headers, b"content-type") or b""
    return status == 0 or (status in _SERVES_OWN and kind.startswith(b"text/plain"))


class ForwardedSend:
    """The ASGI `send` of one forwarded request.

    A client that does not receive a message within `seconds` is disconnected, and the application
    receives the usual message about that. An answer of Serve's own is dropped.
    """

    def __init__(self, send: Send, abort: Callable[[], None], seconds: float) -> None:
        self._send, self._abort, self._seconds = send, abort, seconds
        self._is_dropped = False
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_dropped = is_serves_own(message["status"], message.get("headers", []))
            self.has_begun = not self._is_dropped
        if self._is_dropped:
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            logger.info("a client did not read its answer and was disconnected")
            self._abort()
