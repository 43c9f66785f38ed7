"""What every request passes before the ingress acts on it: who calls, readiness, the body.

The gate stands in two places. In Serve's HTTP proxy, where Ray is told of it by
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.gate:proxy_middlewares`, it guards the port
from the first second that it listens, and keeps unfinished requests out of the ingress, whose
places health checks and running jobs share. In front of the ingress' own routes it guards clusters
whose proxies were not told.

The order is the cheapest first, and nothing of a body is read before it is known who sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi.responses import JSONResponse, Response
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musetalk_pipeline.errors import Stage
from serve_app.answers import generate_body
from serve_app.bodies import (
    WITH_BODY,
    Bodies,
    BodyLimits,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    drain,
    has_body,
    replay,
)
from serve_app.callers import FILES_PREFIX, CallerRules, Refusal
from serve_app.file_pieces import FileLimits, FilePieces
from serve_app.http_protocol import ABORT
from serve_app.probes import Probes
from serve_app.schemas import Failure
from serve_app.settings import read_environment

logger = logging.getLogger("ray.serve")

SERVES_OWN = "/-/"  # health and routes of Serve's proxy itself
# What Serve's proxy takes from a client's headers. None of it is a caller's to choose: with
# `x-request-disconnect-disabled` an abandoned request would keep its place.
_SERVE_HEADERS = frozenset(
    {
        b"x-request-disconnect-disabled",
        b"x-request-timeout-seconds",
        b"x-session-id",
        b"serve-multiplexed-model-id",
        b"serve_multiplexed_model_id",
    }
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A client that is refused before its body was read may go on for that long, so that it reads why.
_LINGER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What may be under way at a time, and for how long."""

    body: BodyLimits = field(default_factory=BodyLimits)
    files: FileLimits = field(default_factory=FileLimits)
    forwarded: int = 800  # below MAX_HTTP of app.py: probes, file pieces and slots have the rest
    first_probe_s: float = 2.0
    probe_s: float = 10.0
    send_s: float = 60.0  # for a client to take what it was sent
    linger_s: float = 2.0  # for a refused client to stop sending


class Judge(Protocol):
    """Who says whether a caller is let in: `CallerRules`, or what counts guesses on top."""

    def judge(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused, from its head alone; None if it may go on."""
        ...


def proxy_middlewares() -> list[Middleware]:
    """Return what Serve's proxy puts in front of everything; Serve calls this as its port opens."""
    import uvicorn.config

    uvicorn.config.HTTP_PROTOCOLS["auto"] = "serve_app.http_protocol:GuardedProtocol"
    rules = CallerRules.of(read_environment())
    return [Middleware(Gate, judge=rules, is_proxy=True)]


class Gate:
    """ASGI middleware. `is_proxy`: it stands where clients connect, so it also answers probes,
    refuses requests until the application has been ready, and sends files piece by piece.
    """

    def __init__(
        self,
        app: ASGIApp,
        judge: Judge,
        limits: GateLimits | None = None,
        *,
        is_proxy: bool = False,
    ) -> None:
        self._app = app
        self._judge = judge
        self._limits = limits or GateLimits()
        self._bodies = Bodies(self._limits.body)
        self._forwarded = 0
        self._probes = self._files = None
        if is_proxy:
            self._probes = Probes(app, self._limits.first_probe_s, self._limits.probe_s)
            self._files = FilePieces(app, self._limits.files)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, abort = _cleaned(scope)
        try:
            refusal = self._refusal(scope) or await self._pass(scope, receive, send, abort)
        except ClientGone:
            where = f"{scope['method']} {scope['path'][:100]!r}"
            logger.info("A client went away before its request was complete: %s", where)
            return
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Decide from the head of the request alone."""
        refusal = self._judge.judge(scope)
        if refusal is None and has_body(scope) and scope["method"] not in WITH_BODY:
            return _NO_BODY
        return refusal

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Refusal | None:
        """Answer or forward the request, or return why neither was done."""
        path, is_read = scope["path"], scope["method"] in ("GET", "HEAD")
        if self._probes is not None and not path.startswith(SERVES_OWN):
            if path in self._probes and is_read:
                await self._probe(path, scope, receive, send)
                return None
            if not await self._probes.is_past_start(scope):
                return _STARTING
        if self._files is not None and path.startswith(FILES_PREFIX) and scope["method"] == "GET":
            return await self._send_file(scope, receive, send, abort)
        if self._forwarded >= self._limits.forwarded:
            return _BUSY
        try:
            body = await self._bodies.read(scope, receive)
        except BodyTooLarge:
            return _too_large(self._limits.body.max_bytes)
        except BodyTooSlow:
            return _TOO_SLOW
        if self._forwarded >= self._limits.forwarded:
            return _BUSY
        with self._place():
            await self._app(scope, replay(body, receive), self._with_deadline(send, abort))
        return None

    async def _probe(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._probes is not None
        answer = await self._probes.answer(path, scope)
        headers = {key.decode(): value.decode() for key, value in answer.headers}
        response = Response(answer.body, answer.status, headers, "application/json")
        await response(scope, receive, send)

    async def _send_file(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Refusal | None:
        assert self._files is not None
        if self._files.is_full:
            return _TOO_MANY_READERS
        try:
            await self._files.answer(scope, receive, send, abort)
        except TimeoutError:
            return _BUSY
        return None

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self._forwarded += 1
        try:
            yield
        finally:
            self._forwarded -= 1

    def _with_deadline(self, send: Send, abort: Callable[[], None]) -> Send:
        """Cut off a client that does not take its answer; what runs behind learns it as usual."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.send_s):
                    await send(message)
            except TimeoutError:
                logger.info("A client did not read its answer; the connection ends.")
                abort()

        return send_in_time

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse(_body_of(refusal), refusal.status_code, refusal.headers)
        if not has_body(scope):
            await response(scope, receive, send)
            return
        # What is left of the body is not this request's any more: the connection must end. A client
        # that is still writing would lose the answer if it ended at once.
        response.headers["connection"] = "close"
        start = {"status": refusal.status_code, "headers": response.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await drain(receive, _LINGER_BYTES, self._limits.linger_s)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _cleaned(scope: Scope) -> tuple[Scope, Callable[[], None]]:
    """Return the scope with nothing in it that steers Serve, and how to cut the connection off."""
    extensions = dict(scope.get("extensions") or {})
    abort = extensions.pop(ABORT, lambda: None)
    headers = [
        (key, value)
        for key, value in scope["headers"]
        if key not in _SERVE_HEADERS
        and (key != b"x-request-id" or _REQUEST_ID.fullmatch(value) is not None)
    ]
    return {**scope, "headers": headers, "extensions": extensions}, abort


def _body_of(refusal: Refusal) -> dict[str, Any]:
    """Return the refusal in the shape of every error."""
    is_passing = refusal.status_code in (408, 429, 503)
    failure = Failure(
        error_type="processing_error" if is_passing else "unknown_error",
        error_message=refusal.message,
        code=refusal.code,
        stage=str(Stage.UNKNOWN),
        retryable=is_passing,
        status_code=refusal.status_code,
        hint=refusal.hint,
    )
    return generate_body("", failure)


_RETRY = {"Retry-After": "5"}
_NO_BODY = Refusal(
    400,
    "body_not_allowed",
    "A request of this method has no body here.",
    "Send it without Content-Length and Transfer-Encoding.",
)
_STARTING = Refusal(
    503,
    "starting",
    "The application is starting and takes no requests yet.",
    "Wait until GET /hc is answered with 200, or send the request again after Retry-After.",
    _RETRY,
)
_BUSY = Refusal(
    503,
    "busy",
    "As many requests as this worker takes are waiting already.",
    "Send the request again after Retry-After; the asynchronous API keeps no connection open.",
    _RETRY,
)
_TOO_MANY_READERS = Refusal(
    503,
    "too_many_readers",
    "As many clients as may are reading files.",
    "Send the request again after Retry-After.",
    _RETRY,
)
_TOO_SLOW = Refusal(
    408,
    "body_too_slow",
    "The body of the request did not come in time.",
    "Send the head and the body of the request at once.",
    {"Retry-After": "5"},
)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(
        413,
        "body_too_large",
        f"The body of the request is larger than {max_bytes} bytes.",
        "Send addresses of the video and the audio, not their data, and less metadata.",
    )
