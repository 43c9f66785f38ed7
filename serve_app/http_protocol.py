"""The HTTP protocol of Serve's proxy: uvicorn's own, and what it lacks against slow clients.

uvicorn bounds neither the time nor the size of a request's head, and a connection that is closed
waits for ever for a client that does not read. Serve makes the uvicorn server itself, so gate.py
names this class where uvicorn looks its protocols up.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

# The key of `scope["extensions"]` under which the application finds how to cut a connection off.
ABORT = "lipsync.abort"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may take before it carries a request."""

    head_s: float = 10.0  # from the first byte of a request, or the connection, to its last header
    head_bytes: int = 64 * 1024
    connections: int = 4000  # beyond it the one that has waited longest for its request is closed

    @classmethod
    def of_this_process(cls) -> ConnectionLimits:
        """Return the defaults, with fewer connections where the process may not open so many."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(connections=min(cls().connections, max(files * 3 // 4, 64)))


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers do not come, or are too large.

    A client that has begun a request is told so (408, 431); one that has sent nothing is cut off.
    WebSockets are not upgraded to: this application has none.
    """

    limits = ConnectionLimits()
    # Connections that carry no request now, by the time since when; shared by all of a process.
    _waiting: ClassVar[OrderedDict[GuardedProtocol, None]] = OrderedDict()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.app, ProxyHeadersMiddleware):
            # It would put an address from a header in the place of the peer's own.
            self.app = self.app.app
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    # uvicorn's hooks ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._make_room()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self._is_between_requests():
            self._expect_head()
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > self.limits.head_bytes:
            self._close(431, b"The headers of the request are too large.")

    def on_headers_complete(self) -> None:
        self._head_has_come()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_between_requests():
            self._waiting[self] = None

    def _should_upgrade_to_ws(self) -> bool:
        return False

    # The head's deadline -----------------------------------------------------------------------

    def _is_between_requests(self) -> bool:
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._waiting[self] = None
        self._head_timer = self.loop.call_later(self.limits.head_s, self._on_head_late)

    def _head_has_come(self) -> None:
        self._waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_late(self) -> None:
        if self._head_bytes:
            self._close(408, b"The headers of the request did not come in time.")
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        oldest = next(iter(self._waiting), self)
        oldest._head_has_come()  # so that the next one does not choose it again
        oldest.transport.abort()

    def _close(self, status: int, text: bytes) -> None:
        self._head_has_come()
        if self.transport.is_closing():
            return
        head = [b"content-type: text/plain; charset=utf-8", b"connection: close"]
        head += [b"content-length: %d" % len(text), b"", text]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(head))
        self.transport.close()
