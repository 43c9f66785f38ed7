"""The HTTP protocol of Serve's proxy: uvicorn's own, with limits on slow clients.

uvicorn limits neither the time nor the size of a request's head, nor the framing around its body,
nor the number of pipelined requests, and it waits without end for a client that does not read.
Serve creates the uvicorn server itself, so middleware.py registers this class in uvicorn's table of
protocols.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from orchestrator.job_api.bodies import has_body

# The key of `scope["extensions"]` with a function that closes the connection.
ABORT = "lipsync.abort"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of a connection, except those on bodies, which bodies.py has."""

    head_s: float = 10.0  # from the first byte of a request, or the connection, to its last header
    head_bytes: int = 64 * 1024
    connections: int = 4000  # one more closes the one that has waited longest for its request
    # Chunk sizes and trailers; the largest body in chunks of one byte has 320 KiB of them. An
    # upload may have more: one byte for so many of its own.
    framing_bytes: int = 512 * 1024
    body_bytes_per_framing: int = 64
    pipelined: int = 16  # requests that wait behind the one in progress
    # A client must receive this much within this time while something waits for it.
    unread_bytes: int = 32 * 1024
    unread_s: float = 60.0

    @classmethod
    def of_this_process(cls) -> ConnectionLimits:
        """Return the defaults, with fewer connections if the process may not open so many."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(connections=min(cls().connections, max(files * 3 // 4, 64)))


class _Unwanted(Exception):
    """Ends the parser's work on a connection, from within one of its callbacks."""


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers do not arrive, or are too large.

    A client that has begun a request gets an answer (408, 431); one that has sent nothing is
    disconnected. There are no WebSockets, so connections are not upgraded. Trailers are dropped:
    the gate has checked the headers, and nothing may be added to them afterwards.
    """

    limits = ConnectionLimits()
    # Connections without a request, the oldest first; all connections of a process share this.
    _waiting: ClassVar[OrderedDict[GuardedProtocol, None]] = OrderedDict()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.app, ProxyHeadersMiddleware):
            # It would replace the peer's address by one from a header.
            self.app = self.app.app
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._head_bytes = self._framing_bytes = 0
        self._unread_timer: asyncio.TimerHandle | None = None
        self._rejection: str | None = None

    # uvicorn's hooks ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._make_room()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self._is_between_requests():
            self._expect_head()
        if self._is_in_head:
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.limits.head_bytes:
            self._close(431, b"The headers of the request are too large.")
        elif self._framing_bytes > self.limits.framing_bytes:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body) + len(body) // self.limits.body_bytes_per_framing
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = self._framing_bytes = 0
        self._head_has_come()
        if len(self.pipeline) >= self.limits.pipelined:
            self.transport.abort()
            raise _Unwanted
        if self.parser.should_upgrade() and has_body({"headers": self.headers}):
            # The parser takes the body for another protocol, and the rest of it for the next
            # request, which is somebody else's if a proxy shares this connection.
            self._rejection = "Send the request without Upgrade: there is no other protocol here."
            raise _Unwanted
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_between_requests() and not self.transport.is_closing():
            self._waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(self._rejection or msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: HTTP/2 clients offer an upgrade with every request."""

    # Clients that do not read ------------------------------------------------------------------

    def _watch_reading(self) -> None:
        self._stop_unread_timer()
        unread = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(
            self.limits.unread_s, self._on_still_unread, unread
        )

    def _on_still_unread(self, unread: int) -> None:
        if unread - self.transport.get_write_buffer_size() < self.limits.unread_bytes:
            self.transport.abort()
        else:
            self._watch_reading()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    # The head's deadline -----------------------------------------------------------------------

    def _is_between_requests(self) -> bool:
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _expect_head(self) -> None:
        self._waiting[self] = None
        self._head_timer = self.loop.call_later(self.limits.head_s, self._on_head_late)

    def _head_has_come(self) -> None:
        self._waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_late(self) -> None:
        if self._head_bytes:
            self._close(408, b"The headers of the request did not arrive in time.")
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        oldest = next(iter(self._waiting), self)
        oldest._head_has_come()  # so that the next connection does not choose it again
        oldest.transport.abort()

    def _close(self, status: int, text: bytes) -> None:
        self._head_has_come()
        if self.transport.is_closing():
            return
        if not self._is_between_requests():
            # This is the head of a second request while the first is in progress: no answer is
            # possible.
            self.transport.abort()
            return
        head = [b"content-type: text/plain; charset=utf-8", b"connection: close"]
        head += [b"content-length: %d" % len(text), b"", text]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(head))
        self.transport.close()
