"""A server on loopback that answers as a test says, and breaks off where a test says."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A request as it arrived. The names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """An answer. `cut_after`: the connection is closed after so many bytes of the body; -1 closes
    it before the answer begins.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    """Return an answer in JSON. `Retry_After` is sent as `Retry-After`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **named})


def refusal(status: int, code: str, *, retryable: bool = False, **headers: str) -> Reply:
    """Return an error in the shape of this API."""
    body = {
        "status": "failed", "error_type": "unknown_error", "error_message": "It cannot be done.",
        "code": code, "hint": "Do something else.", "input": "video", "stage": "validation",
        "details": {"field": "x"}, "retryable": retryable,
    }  # fmt: skip
    return reply(body, status, **headers)


Script = Callable[[Seen], Reply]


@dataclass
class ScriptedServer:
    """What a test looks at and changes. `script` answers; replies in `first` come before it."""

    url: str
    script: Script
    first: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, seen: Seen) -> Reply:
        with self.lock:
            self.seen.append(seen)
            return self.first.pop(0) if self.first else self.script(seen)

    def lines(self) -> list[str]:
        """Return method and path of each request."""
        return [f"{seen.method} {seen.path}" for seen in self.seen]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: ScriptedServer

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.scripted.answer(Seen(self.command, self.path, headers, body))
        if answer.cut_after == -1:
            self._cut()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut_after])
        if answer.cut_after is not None:
            self.wfile.flush()
            self._cut()

    do_GET = do_POST = do_PATCH = do_HEAD = do_DELETE = do_PUT = _any

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client may have gone away."""


@contextlib.contextmanager
def scripted_server(script: Script) -> Iterator[ScriptedServer]:
    """Run a server until the context ends."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    scripted = ScriptedServer(f"http://127.0.0.1:{server.server_port}", script)
    handler.scripted = scripted  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
