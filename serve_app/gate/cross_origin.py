"""Pages of other web sites: which of them may read answers (CORS, https://fetch.spec.whatwg.org/).

The origins that the configuration names decide who may *read* an answer. Who may *call* is decided
by access_control.py alone: a page of an allowed origin needs the key like everybody else, and does
not become a caller of this machine. No answer allows credentials, as keys are headers of our own
and no route reads cookies.

A browser sends a preflight without the key, so the gate answers preflights itself, before it checks
access. It adds the headers to every other answer too, its own rejections included, or else a page
could not read why it was rejected.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from serve_app.config.origins import ANY
from serve_app.gate.callers import header_values

ALLOW = "access-control-allow-origin"
MAX_AGE_S = 600  # for which a browser may remember an answer to a preflight
_TUS = ("Tus-Resumable", "Upload-Length", "Upload-Offset")
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
SENT = ", ".join(
    (
        "Authorization",
        "Content-Type",
        "Idempotency-Key",
        "If-Range",
        "Last-Event-ID",
        "Range",
        "X-Internal-API-Key",
        "Upload-Checksum",
        "Upload-Defer-Length",
        "Upload-Metadata",
        "X-HTTP-Method-Override",
        *_TUS,
    )
)
READ = ", ".join(
    (
        "Accept-Ranges",
        "Content-Disposition",
        "Content-Length",
        "Content-Range",
        "ETag",
        "Location",
        "Retry-After",
        "X-Face-Box",
        "X-Faces",
        "X-Source-Frame",
        "Tus-Extension",
        "Tus-Max-Size",
        "Tus-Version",
        "Upload-Expires",
        *_TUS,
    )
)


class CrossOrigin:
    """The origins whose pages may read answers. Without any, nothing is added to an answer."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)

    def preflight(self, scope: Scope) -> Response | None:
        """Return the answer to a preflight of an allowed origin; None for any other request."""
        is_preflight = scope["method"] == "OPTIONS" and header_values(
            scope, b"access-control-request-method"
        )
        if not is_preflight or self._allowed(scope) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": SENT,
            "Access-Control-Max-Age": str(MAX_AGE_S),
        }
        return Response(None, 204, headers)

    def readable(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that lets a page of an allowed origin read the answer."""
        if not self._origins:
            return send
        allowed = self._allowed(scope)

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                self._add(MutableHeaders(raw=headers), allowed)
                message = {**message, "headers": headers}
            await send(message)

        return send_readable

    def _add(self, headers: MutableHeaders, allowed: str | None) -> None:
        # If this gate is in the proxy, the one in front of the ingress may have added all of it.
        if ANY not in self._origins and "origin" not in headers.get("vary", "").lower():
            headers.add_vary_header("Origin")
        if allowed is not None and ALLOW not in headers:
            headers[ALLOW] = allowed
            headers["access-control-expose-headers"] = READ

    def _allowed(self, scope: Scope) -> str | None:
        """Return what an answer says about the origin of a request; None if it is not allowed."""
        sent = [value.decode("latin-1") for value in header_values(scope, b"origin")]
        if len(sent) != 1:
            return None
        if ANY in self._origins:
            return ANY
        return sent[0] if sent[0] in self._origins else None
