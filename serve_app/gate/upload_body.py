"""The body of an upload while it arrives: in chunks, within a rate and a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.types import Message, Receive

from orchestrator.job_api.bodies import BodyTooSlow, ClientGone


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How uploads are read. By default a client must send 64 KiB every 20 s."""

    writers: int = 32
    place_s: float = 2.0  # how long to wait for a place
    piece_bytes: int = 1 << 20  # what the ingress gets at once
    slice_bytes: int = 64 * 1024
    slice_s: float = 20.0
    whole_s: float = 7200.0
    answer_s: float = 180.0  # for the ingress to store a piece, or to judge a whole file
    # Of the fields of a form that are not files, and the number of all of its parts.
    fields_bytes: int = 64 * 1024
    parts: int = 32
    documents: int = 4  # with files in them, which are held as a whole
    document_s: float = 60.0


class UploadBody:
    """Reads one body. `is_over`: all of it has been read."""

    def __init__(self, receive: Receive, limits: UploadLimits) -> None:
        self._receive, self._limits = receive, limits
        self._slice_left = limits.slice_bytes
        self._time_left = limits.slice_s
        self._ends_at = asyncio.get_running_loop().time() + limits.whole_s
        self.is_over = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield what arrives, as it arrives.

        Raises:
            BodyTooSlow: the client sends too slowly.
            ClientGone: it has disconnected.
        """
        while not self.is_over:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self.is_over = not message.get("more_body", False)
            if data := message.get("body", b""):
                yield data

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the same in pieces of `piece_bytes`; at least one, which may be empty.

        What has arrived of a body that breaks off is yielded before the error.
        """
        pending = bytearray()
        try:
            async with contextlib.aclosing(self.chunks()) as chunks:
                async for data in chunks:
                    pending += data
                    while len(pending) > self._limits.piece_bytes:
                        yield bytes(pending[: self._limits.piece_bytes])
                        del pending[: self._limits.piece_bytes]
        except (BodyTooSlow, ClientGone):
            yield bytes(pending)
            raise
        yield bytes(pending)

    async def whole(self) -> bytes:
        """Return all of a body whose declared length has been checked.

        Raises:
            BodyTooSlow: it has not arrived within `document_s`.
            ClientGone: the client has disconnected.
        """
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._limits.document_s),
                contextlib.aclosing(self.chunks()) as chunks,
            ):
                async for data in chunks:
                    body += data
        except TimeoutError:
            raise BodyTooSlow from None
        return bytes(body)

    async def _next(self) -> Message:
        """Wait for a message. Only the client's own time counts, not that of the ingress."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(min(began + self._time_left, self._ends_at)):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow from None
        self._time_left -= loop.time() - began
        self._slice_left -= len(message.get("body", b""))
        if self._slice_left <= 0:
            self._slice_left, self._time_left = self._limits.slice_bytes, self._limits.slice_s
        return message
