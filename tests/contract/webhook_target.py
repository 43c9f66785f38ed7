"""A receiver of webhooks over real sockets."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Delivery:
    """One request that a target got."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int


@dataclass
class Target:
    """A receiver. `answers`: statuses (with headers) of the next requests; afterwards 204."""

    url: str = ""
    got: list[Delivery] = field(default_factory=list)
    answers: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    stalls: int = 0
    leaving: threading.Event = field(default_factory=threading.Event)

    def next_answer(self) -> tuple[int, dict[str, str]]:
        return self.answers.popleft() if self.answers else (204, {})


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        target = self.server.target
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if target.stalls:
            target.stalls -= 1
            target.leaving.wait(30.0)
            return
        status, headers = target.next_answer()
        names = {name.lower(): value for name, value in self.headers.items()}
        target.got.append(Delivery(self.path, names, body, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `got` is the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, target: Target, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


@contextlib.contextmanager
def listening(tls: ssl.SSLContext | None = None) -> Iterator[Target]:
    target = Target()
    with _Server(target, tls) as server:
        scheme = "https" if tls else "http"
        target.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield target
        finally:
            target.leaving.set()
            server.shutdown()
            thread.join()
