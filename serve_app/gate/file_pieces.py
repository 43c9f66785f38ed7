"""Files pass Serve's proxy in pieces; each is requested when the client has received the last.

Serve streams from replica to proxy without back-pressure, so for a client that does not read, both
would hold a whole video in memory. Here the proxy holds one piece for each client. It requests
ranges of the file from the ingress with the client's own headers and query, so that the ingress
checks the access to the file for every piece.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gate.asgi import AnswerTooLarge, Headers, WholeAnswer, call, disconnection, header
from serve_app.gate.forwarding import is_serves_own

logger = logging.getLogger("ray.serve")

_SLICE_BYTES = 64 * 1024
_ONE_RANGE = re.compile(rb"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_CONTENT_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(\d+)")
# These of the client's headers are not forwarded, because they concern the whole file.
_OURS = frozenset({b"range", b"if-range"})


class Unanswered(Exception):
    """The ingress gave no answer."""


class TooManyReaders(Exception):
    """The largest number of clients read files, and none of them has finished in time."""


class FileChanged(Exception):
    """The file behind a link was replaced or removed between two of its pieces."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How files are read. By default a client must receive 64 KiB every 20 s."""

    readers: int = 32
    # How long to wait for a place. The ingress checks links, so invalid ones take a place too.
    place_s: float = 2.0
    piece_bytes: int = 1 << 20
    slice_s: float = 20.0
    piece_s: float = 30.0  # for the ingress to send one piece


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes that a client requests: `start` to `end` (both included, None: the last byte), or
    the last `suffix` bytes. `whole`: it names no range, and gets 200.
    """

    start: int = 0
    end: int | None = None
    suffix: int | None = None
    whole: bool = True

    def within(self, total: int) -> tuple[int, int]:
        """Return first and last byte in a file of `total` bytes; an empty range past its end."""
        if self.suffix is not None:
            return max(total - self.suffix, 0), total - 1
        return self.start, total - 1 if self.end is None else min(self.end, total - 1)


def requested_range(headers: Headers) -> ByteRange:
    """Read `Range`. Several ranges, or an invalid one, count as none, as RFC 9110 allows."""
    value = header(headers, b"range")
    match = None if value is None else _ONE_RANGE.fullmatch(value.strip().lower())
    if match is None:
        return ByteRange()
    first, last = match.groups()
    if not first:
        return ByteRange(suffix=int(last), whole=False) if last and int(last) else ByteRange()
    start, end = int(first), int(last) if last else None
    return ByteRange() if end is not None and end < start else ByteRange(start, end, whole=False)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One range of the file as the ingress sent it."""

    headers: Headers
    start: int
    total: int
    body: bytes

    @property
    def version(self) -> bytes | None:
        """A value that changes when the file does."""
        return header(self.headers, b"etag") or header(self.headers, b"last-modified")


class FilePieces:
    """Answers `GET /files/…` in the proxy."""

    def __init__(self, app: ASGIApp, limits: FileLimits) -> None:
        self._app = app
        self._limits = limits
        self._places = asyncio.Semaphore(limits.readers)

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> None:
        """Send the file, or the ingress' own answer if it does not send the file.

        `abort` closes the connection: the only way to end an answer that cannot be completed.

        Raises:
            Unanswered: the ingress gave no answer; nothing has been sent.
            TooManyReaders: there was no place; nothing has been requested or sent.
        """
        try:
            async with asyncio.timeout(self._limits.place_s):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyReaders from None
        rejection = None
        try:
            rejection = await self._send_file(scope, receive, send)
        except (FileChanged, AnswerTooLarge) as exc:
            logger.warning("a file was not sent to its end: %s", exc)
            abort()
        except SlowReader:
            logger.info("a client did not read the file that it requested and was disconnected")
            abort()
        finally:
            self._places.release()
        if rejection is not None:  # without a place: this client reads no file
            await _send_whole(rejection, send)

    async def _send_file(self, scope: Scope, receive: Receive, send: Send) -> WholeAnswer | None:
        """Send the file, or return the answer that the ingress gave instead."""
        requested = requested_range(scope["headers"])
        first = await self._begin(scope, requested)
        if (
            isinstance(first, _Piece)
            and not requested.whole
            and not _condition_holds(scope["headers"], first)
        ):
            requested = ByteRange()
            first = await self._begin(scope, requested)
        if isinstance(first, WholeAnswer):
            return first
        async with disconnection(receive) as disconnected:
            await self._send_pieces(scope, first, requested, send, disconnected)
        return None

    async def _begin(self, scope: Scope, requested: ByteRange) -> _Piece | WholeAnswer:
        try:
            first = await self._first(scope, requested)
        except TimeoutError:
            raise Unanswered from None
        if isinstance(first, WholeAnswer) and is_serves_own(first.status, first.headers):
            raise Unanswered
        return first

    async def _first(self, scope: Scope, requested: ByteRange) -> _Piece | WholeAnswer:
        if requested.suffix is not None:
            # The first byte of a suffix is known once the size is.
            probe = await self._fetch(scope, 0, 0)
            if isinstance(probe, WholeAnswer):
                return probe
            start, end = requested.within(probe.total)
            return await self._fetch(scope, start, min(end, start + self._limits.piece_bytes - 1))
        last = requested.start + self._limits.piece_bytes - 1
        end = last if requested.end is None else min(last, requested.end)
        answer = await self._fetch(scope, requested.start, end)
        if isinstance(answer, WholeAnswer) and answer.status == 416 and requested.whole:
            return await self._fetch(scope, None)  # an empty file
        return answer

    async def _fetch(self, scope: Scope, start: int | None, end: int = 0) -> _Piece | WholeAnswer:
        """Request a range from the ingress; an `WholeAnswer` is anything but that range."""
        headers = [(key, value) for key, value in scope["headers"] if key not in _OURS]
        if start is not None:
            headers.append((b"range", b"bytes=%d-%d" % (start, end)))
        own = {**scope, "headers": headers}
        async with asyncio.timeout(self._limits.piece_s):
            answer = await call(self._app, own, self._limits.piece_bytes)
        found = _CONTENT_RANGE.fullmatch(answer.header(b"content-range") or b"")
        if answer.status != 206 or found is None:
            return answer
        first, last, total = (int(number) for number in found.groups())
        if first != start or last - first + 1 != len(answer.body):
            raise FileChanged("the ingress sent another range than requested")
        return _Piece(answer.headers, first, total, answer.body)

    async def _send_pieces(
        self,
        scope: Scope,
        first: _Piece,
        requested: ByteRange,
        send: Send,
        disconnected: asyncio.Event,
    ) -> None:
        start, end = requested.within(first.total)
        await self._send(_start(first, start, end, requested.whole), send)
        piece = first
        while True:
            for at in range(0, len(piece.body), _SLICE_BYTES):
                data = piece.body[at : at + _SLICE_BYTES]
                await self._send(_body(data, more=True), send)
                if disconnected.is_set():
                    return
            position = piece.start + len(piece.body)
            if position > end:
                break
            piece = await self._next(scope, position, end, first)
        await self._send(_body(b"", more=False), send)

    async def _next(self, scope: Scope, start: int, end: int, first: _Piece) -> _Piece:
        last = min(end, start + self._limits.piece_bytes - 1)
        try:
            piece = await self._fetch(scope, start, last)
        except TimeoutError:
            raise FileChanged("the ingress sent no piece in time") from None
        if isinstance(piece, WholeAnswer):
            raise FileChanged(f"the ingress answered {piece.status} for a piece")
        if (piece.version, piece.total) != (first.version, first.total):
            raise FileChanged("the file has been replaced meanwhile")
        return piece

    async def _send(self, message: Message, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limits.slice_s):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


class SlowReader(Exception):
    """The client does not receive what it has requested."""


def _condition_holds(headers: Headers, piece: _Piece) -> bool:
    """Whether `If-Range` allows a range to be sent."""
    condition = header(headers, b"if-range")
    known = (header(piece.headers, b"etag"), header(piece.headers, b"last-modified"))
    return condition is None or condition in known


def _start(first: _Piece, start: int, end: int, whole: bool) -> Message:
    """Return the head of the answer for all pieces together."""
    ours = (b"content-length", b"content-range")
    headers = [(key, value) for key, value in first.headers if key not in ours]
    headers.append((b"content-length", b"%d" % (end - start + 1)))
    if not whole:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end, first.total)))
    status = 200 if whole else 206
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _send_whole(answer: WholeAnswer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send(_body(answer.body, more=False))
