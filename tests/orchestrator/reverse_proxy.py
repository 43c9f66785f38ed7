"""A small reverse proxy over real sockets. It forwards bytes as they come, and adds its headers."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

READ_TIMEOUT_S = 60.0  # a common default of proxies, and longer than a claim is held
OF_ONE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def _forward(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else None
        headers = {k: v for k, v in self.headers.items() if k.lower() not in OF_ONE_CONNECTION}
        address = self.client_address[0]
        forwarded = self.headers.get("X-Forwarded-For")
        headers["X-Forwarded-For"] = f"{forwarded}, {address}" if forwarded else address
        headers["X-Forwarded-Proto"], headers["Via"] = self.server.scheme, "1.1 proxy"
        if self.server.prefix:
            headers["X-Forwarded-Prefix"] = self.server.prefix
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=READ_TIMEOUT_S)
        try:
            path = self.path.removeprefix(self.server.prefix) or "/"
            upstream.request(self.command, path, body, headers)
            self._answer(upstream.getresponse())
        finally:
            upstream.close()

    def _answer(self, response: http.client.HTTPResponse) -> None:
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in OF_ONE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while part := response.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Proxy(ThreadingHTTPServer):
    def __init__(self, upstream: tuple[str, int], host: str, prefix: str, scheme: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.upstream, self.prefix, self.scheme = upstream, prefix, scheme

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


@contextmanager
def reverse_proxy(
    url: str, host: str = "127.0.0.1", prefix: str = "", scheme: str = "https"
) -> Iterator[str]:
    """Run a proxy in front of `url`, and yield its address, which ends with `prefix`.

    `scheme`: what it says that its callers use; it speaks plain HTTP in any case.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with _Proxy((parts.hostname, parts.port), host, prefix, scheme) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{proxy.server_address[1]}{prefix}"
        finally:
            proxy.shutdown()
            thread.join()
