"""What the fakes of all vendors share: real HTTP on loopback, a key, faults, and machines."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from tests.rental.fakes.spec import load_spec

KEY = "key-of-the-tests"


@dataclass(frozen=True)
class Reply:
    """An answer. `body` is sent as JSON; `text`, where there is one, instead of it."""

    status: int
    body: Any = None
    text: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    `is_late`: what was asked for is done first. A reply of None cuts the connection.
    """

    reply: Reply | None
    method: str = ""
    path: str = ""
    times: int = 1
    is_late: bool = False

    def takes(self, method: str, path: str) -> bool:
        """Return whether it applies to a request."""
        return (
            self.times > 0 and method.startswith(self.method) and bool(re.search(self.path, path))
        )


@dataclass(frozen=True)
class Request:
    """A request whose key is right."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class FakeVendor:
    """A vendor with an account that is empty at first.

    `machines` are what the account rents, by id, in the vendor's own words. `wrong` has what
    broke the vendor's specification. `on_step` is called before and after each request is
    carried out.
    """

    vendor: ClassVar[str]
    spec_file: ClassVar[str | None] = None
    base_path: ClassVar[str] = ""

    def __init__(self) -> None:
        self.machines: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.wrong: list[str] = []
        self.is_full = False
        self.key = KEY
        self.on_step: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self.connections = 0
        self._closed = threading.Condition()
        self.url = ""
        self._spec = load_spec(self.spec_file) if self.spec_file else None

    def answer(self, request: Request) -> Reply:
        """Carry out one request."""
        raise NotImplementedError

    def advance(self) -> None:
        """Let everything that starts run."""
        raise NotImplementedError

    def accepts(self, headers: Any) -> bool:
        """Return whether the request has the account's key."""
        return bool(headers.get("Authorization") == f"Bearer {self.key}")

    def refusal(self) -> Reply:
        """Return what a wrong key is answered with."""
        return Reply(401, {"title": "Unauthorized", "status": 401, "detail": "bad token"})

    def lose(self, machine_id: str) -> None:
        """Take a machine away, as the vendor does when its owner wants it back."""
        with self.lock:
            del self.machines[machine_id]

    def foreign(self) -> str:
        """Rent a machine for somebody else who uses the account, and return its id."""
        raise NotImplementedError

    def fail(self, reply: Reply | None, **where: Any) -> None:
        """Add a fault."""
        self.faults.append(Fault(reply, **where))

    def count_connection(self, change: int) -> None:
        """Note that a connection was opened or closed."""
        with self._closed:
            self.connections += change
            self._closed.notify_all()

    def wait_for_connections(self, most: int) -> None:
        """Wait until no more than `most` connections are open, and their requests carried out."""
        with self._closed:
            assert self._closed.wait_for(lambda: self.connections <= most, timeout=20)

    def respond(self, request: Request) -> Reply | None:
        """Return the answer to a request, or None for none at all."""
        with self.lock:
            self.requests.append(request)
            fault = next((one for one in self.faults if one.takes(request.method, request.path)), 0)
            if fault:
                fault.times -= 1
                if fault.is_late:
                    self._checked(request)
                return fault.reply
        self.on_step()
        with self.lock:
            reply = self._checked(request)
        self.on_step()
        return reply

    def _checked(self, request: Request) -> Reply:
        """Carry out a request; it and its answer are held to the specification."""
        path = request.path.removeprefix(self.base_path)
        if self._spec is not None:
            wrong = self._spec.request(request.method, path, request.query, request.body)
            if wrong:
                self.wrong += wrong
                return Reply(400, {"detail": "; ".join(wrong)})
        try:
            reply = self.answer(request)
        except Exception as exc:
            self.wrong.append(f"{request.method} {request.path}: {exc!r}")
            return Reply(400, {"detail": repr(exc)})
        if self._spec is not None and reply.text is None:
            self.wrong += self._spec.answer(request.method, path, reply.status, reply.body)
        return reply

    @contextmanager
    def running(self, listening: socket.socket | None = None) -> Iterator[FakeVendor]:
        """Serve on this socket, or else on a free port of this machine."""
        where = listening or socket.create_server(("127.0.0.1", 0))
        host, port = where.getsockname()
        server = ThreadingHTTPServer((host, port), _handler(self), bind_and_activate=False)
        server.socket.close()
        server.socket = where
        server.daemon_threads = True
        self.url = f"http://{host}:{port}{self.base_path}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(fake: FakeVendor) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            fake.count_connection(1)

        def finish(self) -> None:
            fake.count_connection(-1)
            super().finish()

        def log_message(self, *_: object) -> None:
            pass

        def _handle(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(size)
            parts = urlsplit(self.path)
            request = Request(
                self.command, parts.path, dict(parse_qsl(parts.query)),
                json.loads(raw) if raw else None,
            )  # fmt: skip
            if "/public-log/" not in parts.path and not fake.accepts(self.headers):
                reply: Reply | None = fake.refusal()
            else:
                reply = fake.respond(request)
            if reply is None:
                self.close_connection = True
                return
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            text = reply.text
            if text is None:
                text = "" if reply.body is None else json.dumps(reply.body)
            data = text.encode()
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the caller has been killed

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    return Handler
