"""Files leave through Serve's proxy in pieces, each asked for when the client has taken the last.

Serve streams from replica to proxy without back-pressure: a client that does not read would have a
whole video put into the memory of both. Here the proxy holds one piece a client, and asks the
ingress for ranges of the file with the client's own headers and query, so that who may read a file
is decided there, for every piece.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gate.asgi import Answer, AnswerTooLarge, Headers, ask, departure, header
from serve_app.gate.forwarding import is_serves_own

logger = logging.getLogger("ray.serve")

_SLICE_BYTES = 64 * 1024
_ONE_RANGE = re.compile(rb"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_CONTENT_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(\d+)")
# Of the client's headers these are answered here, over pieces.
_OURS = frozenset({b"range", b"if-range"})


class Unanswered(Exception):
    """Nobody answered for the file."""


class TooManyReaders(Exception):
    """As many clients read as may, and none of them has ended meanwhile."""


class FileChanged(Exception):
    """The file behind a link was replaced or removed between two of its pieces."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How files are read. By default a client must take 64 KiB every 20 s."""

    readers: int = 32
    place_s: float = (
        2.0  # for a place; links are checked by the ingress, so wrong ones take one too
    )
    piece_bytes: int = 1 << 20
    slice_s: float = 20.0
    piece_s: float = 30.0  # for the ingress to send one piece


@dataclass(frozen=True, slots=True)
class Wanted:
    """The bytes a client asked for: `start` to `end` (both included, None: the last one), or the
    last `suffix` bytes. `whole`: it named none, and gets 200.
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


def wanted_of(headers: Headers) -> Wanted:
    """Read `Range`. Several ranges, and what makes no sense, count as none: RFC 9110 allows it."""
    value = header(headers, b"range")
    match = None if value is None else _ONE_RANGE.fullmatch(value.strip().lower())
    if match is None:
        return Wanted()
    first, last = match.groups()
    if not first:
        return Wanted(suffix=int(last), whole=False) if last and int(last) else Wanted()
    start, end = int(first), int(last) if last else None
    return Wanted() if end is not None and end < start else Wanted(start, end, whole=False)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One range of the file as the ingress gave it."""

    headers: Headers
    start: int
    total: int
    body: bytes

    @property
    def version(self) -> bytes | None:
        """What changes when the file does."""
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
        """Send the file, or the ingress' own answer where it gives none. `abort` cuts the
        connection off: the only way to end an answer that cannot be completed.

        Raises:
            Unanswered: the ingress gave no answer; nothing has been sent.
            TooManyReaders: there was no place; nothing has been asked or sent.
        """
        try:
            async with asyncio.timeout(self._limits.place_s):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyReaders from None
        refusal = None
        try:
            refusal = await self._send_file(scope, receive, send)
        except (FileChanged, AnswerTooLarge) as exc:
            logger.warning("A file was not sent to its end: %s", exc)
            abort()
        except SlowReader:
            logger.info("A client did not read the file that it asked for; the connection ends.")
            abort()
        finally:
            self._places.release()
        if refusal is not None:  # in no place: whoever gets no file may read as slowly as others
            await _send_whole(refusal, send)

    async def _send_file(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Send the file, or return what the ingress said instead."""
        wanted = wanted_of(scope["headers"])
        first = await self._begin(scope, wanted)
        if (
            isinstance(first, _Piece)
            and not wanted.whole
            and not _condition_holds(scope["headers"], first)
        ):
            wanted = Wanted()
            first = await self._begin(scope, wanted)
        if isinstance(first, Answer):
            return first
        async with departure(receive) as gone:
            await self._send_pieces(scope, first, wanted, send, gone)
        return None

    async def _begin(self, scope: Scope, wanted: Wanted) -> _Piece | Answer:
        try:
            first = await self._first(scope, wanted)
        except TimeoutError:
            raise Unanswered from None
        if isinstance(first, Answer) and is_serves_own(first.status, first.headers):
            raise Unanswered
        return first

    async def _first(self, scope: Scope, wanted: Wanted) -> _Piece | Answer:
        if wanted.suffix is not None:
            # Where the last bytes begin is known once the size is.
            look = await self._ask(scope, 0, 0)
            if isinstance(look, Answer):
                return look
            start, end = wanted.within(look.total)
            return await self._ask(scope, start, min(end, start + self._limits.piece_bytes - 1))
        last = wanted.start + self._limits.piece_bytes - 1
        end = last if wanted.end is None else min(last, wanted.end)
        answer = await self._ask(scope, wanted.start, end)
        if isinstance(answer, Answer) and answer.status == 416 and wanted.whole:
            return await self._ask(scope, None)  # an empty file
        return answer

    async def _ask(self, scope: Scope, start: int | None, end: int = 0) -> _Piece | Answer:
        """Ask the ingress for a range; an `Answer` is anything but that range."""
        headers = [(key, value) for key, value in scope["headers"] if key not in _OURS]
        if start is not None:
            headers.append((b"range", b"bytes=%d-%d" % (start, end)))
        own = {**scope, "headers": headers}
        async with asyncio.timeout(self._limits.piece_s):
            answer = await ask(self._app, own, self._limits.piece_bytes)
        found = _CONTENT_RANGE.fullmatch(answer.header(b"content-range") or b"")
        if answer.status != 206 or found is None:
            return answer
        first, last, total = (int(number) for number in found.groups())
        if first != start or last - first + 1 != len(answer.body):
            raise FileChanged("the ingress sent another range than it was asked for")
        return _Piece(answer.headers, first, total, answer.body)

    async def _send_pieces(
        self, scope: Scope, first: _Piece, wanted: Wanted, send: Send, gone: asyncio.Event
    ) -> None:
        start, end = wanted.within(first.total)
        await self._send(_start(first, start, end, wanted.whole), send)
        piece = first
        while True:
            for at in range(0, len(piece.body), _SLICE_BYTES):
                data = piece.body[at : at + _SLICE_BYTES]
                await self._send(_body(data, more=True), send)
                if gone.is_set():
                    return
            position = piece.start + len(piece.body)
            if position > end:
                break
            piece = await self._next(scope, position, end, first)
        await self._send(_body(b"", more=False), send)

    async def _next(self, scope: Scope, start: int, end: int, first: _Piece) -> _Piece:
        last = min(end, start + self._limits.piece_bytes - 1)
        try:
            piece = await self._ask(scope, start, last)
        except TimeoutError:
            raise FileChanged("the ingress gave no piece in time") from None
        if isinstance(piece, Answer):
            raise FileChanged(f"the ingress answered {piece.status} for a piece")
        if (piece.version, piece.total) != (first.version, first.total):
            raise FileChanged("it has been replaced meanwhile")
        return piece

    async def _send(self, message: Message, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limits.slice_s):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


class SlowReader(Exception):
    """The client does not take what it has asked for."""


def _condition_holds(headers: Headers, piece: _Piece) -> bool:
    """Whether `If-Range` lets a range be sent."""
    condition = header(headers, b"if-range")
    known = (header(piece.headers, b"etag"), header(piece.headers, b"last-modified"))
    return condition is None or condition in known


def _start(first: _Piece, start: int, end: int, whole: bool) -> Message:
    """Return the head of the answer over all pieces."""
    ours = (b"content-length", b"content-range")
    headers = [(key, value) for key, value in first.headers if key not in ours]
    headers.append((b"content-length", b"%d" % (end - start + 1)))
    if not whole:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end, first.total)))
    status = 200 if whole else 206
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _send_whole(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send(_body(answer.body, more=False))
