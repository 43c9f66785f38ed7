"""Listens for results that machines post, each at an address of its own that cannot be guessed."""

from __future__ import annotations

import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

MAX_BYTES = 1_000_000


class Listener:
    """Serves on `host` and `port` for the length of a `with` block.

    `public_url` is how machines reach it; without one it is the address itself.
    """

    def __init__(self, host: str, port: int, public_url: str | None = None) -> None:
        self._posted: dict[str, str | None] = {}
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        own = f"http://{host}:{self._server.server_address[1]}"
        self._base = (public_url or own).rstrip("/")

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_token(self) -> str:
        """Return the secret part of a new address."""
        token = secrets.token_urlsafe(24)
        self._posted[token] = None
        return token

    def url(self, token: str) -> str:
        """Return the address to which a result is posted."""
        return f"{self._base}/bench/{token}"

    def posted(self, token: str) -> str:
        """Return what was posted; nothing if nothing was."""
        return self._posted.get(token) or ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        posted = self._posted

        class Handler(BaseHTTPRequestHandler):
            timeout = 20

            def do_POST(self) -> None:
                token = self.path.rpartition("/")[2]
                size = int(self.headers.get("Content-Length") or 0)
                if token not in posted or not 0 < size <= MAX_BYTES:
                    self.send_error(404)
                    return
                posted[token] = self.rfile.read(size).decode(errors="replace")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing: the addresses are secret."""

        return Handler
