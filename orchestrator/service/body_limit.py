"""Reads the body of every request before its route runs, within limits of size and time.

A route therefore never waits for a slow sender, and never has more in memory than the limit.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.service.errors import Rejected, error_answer

MAX_BODY_BYTES = 1024 * 1024
MAX_BODY_S = 15.0


class BodyLimit:
    """ASGI middleware that answers 413 to a large body and 408 to a slow one."""

    def __init__(
        self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, max_s: float = MAX_BODY_S
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on once its body is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._max_s):
                body = await self._read(receive)
        except TimeoutError:
            text = f"The body did not arrive within {self._max_s:g} seconds."
            await self._refuse(Rejected(408, "body_too_slow", text), scope, receive, send)
            return
        if body is None:
            text = f"The body has more than {self._max_bytes} bytes."
            await self._refuse(Rejected(413, "body_too_large", text), scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replayed, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body; None if it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):  # also if the caller has disconnected
                return bytes(body)

    async def _refuse(self, rejected: Rejected, scope: Scope, receive: Receive, send: Send) -> None:
        rejected.headers["Connection"] = "close"  # what is left of the body is not read
        await error_answer(rejected)(scope, receive, send)
