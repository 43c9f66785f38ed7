"""The gate that every request passes before it reaches a route: access, readiness, the body.

The gate runs in two places. In Serve's HTTP proxy, which loads it through
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.gate.middleware:proxy_middlewares`, it guards
the port from the first second that it is open, and keeps unfinished requests out of the ingress,
whose places health checks and running jobs share. In front of the ingress' own routes it guards
clusters whose proxies do not load it.

The cheapest check comes first, and nothing of a body is read before the caller's access is checked.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from fastapi.responses import JSONResponse, Response
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.job_api.bodies import (
    BATCH_BODIES,
    BATCHES_PATH,
    LINGER_S,
    WITH_BODY,
    Bodies,
    BodyLimits,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    has_body,
    replay,
    send_early,
)
from serve_app.config.environment import read_environment
from serve_app.gate.access_control import AccessControl
from serve_app.gate.callers import CallerRules, route_path
from serve_app.gate.cross_origin import CrossOrigin
from serve_app.gate.file_pieces import FileLimits, FilePieces, TooManyReaders, Unanswered
from serve_app.gate.forms import FormInvalid
from serve_app.gate.forwarding import ForwardedSend
from serve_app.gate.http_protocol import ABORT, ConnectionLimits, GuardedProtocol
from serve_app.gate.probes import HC, HEALTH, Probes
from serve_app.gate.rejections import (
    BUSY,
    NO_BODY,
    STARTING,
    TOO_MANY_READERS,
    TOO_MANY_WRITERS,
    TOO_SLOW,
    UNAVAILABLE,
    UPLOAD_TOO_SLOW,
    Rejection,
    invalid_form,
    too_large,
)
from serve_app.gate.signed_paths import is_file
from serve_app.gate.upload_body import UploadBody, UploadLimits
from serve_app.gate.uploads import (
    DocumentTooLarge,
    JobDocument,
    TooManyWriters,
    Uploads,
    has_files_inside,
    takes,
)

logger = logging.getLogger("ray.serve")

SERVES_OWN = "/-/"  # the health check and the route table of Serve's proxy itself
# Headers that steer Serve's proxy. Callers may not choose any of it: with
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
# A client that is rejected before its body was read may send this much more, so that it can still
# read the answer.


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How much may be in progress at once, and for how long."""

    body: BodyLimits = field(default_factory=BodyLimits)
    batch: BodyLimits = BATCH_BODIES
    files: FileLimits = field(default_factory=FileLimits)
    uploads: UploadLimits = field(default_factory=UploadLimits)
    # Below MAX_HTTP of app.py: probes, pieces of files and the slots' own calls need the rest.
    forwarded: int = 800
    first_probe_s: float = 2.0
    probe_s: float = 10.0
    send_s: float = 60.0  # for a client to take what it was sent
    linger_s: float = LINGER_S


# The ingress accepts more, because it serves the pieces of files and the probes of all proxies.
INGRESS_LIMITS = GateLimits(forwarded=900, uploads=UploadLimits(writers=256))


class AccessCheck(Protocol):
    """What decides who may call: `AccessControl`, or `CallerRules` alone."""

    def check(self, scope: Scope) -> Rejection | None:
        """Return why a request is rejected, from headers and URL alone; None if it may pass."""
        ...


def proxy_middlewares() -> list[Middleware]:
    """Return the middleware of Serve's proxy. Serve calls this when it opens the port."""
    import uvicorn.config

    uvicorn.config.HTTP_PROTOCOLS["auto"] = "serve_app.gate.http_protocol:GuardedProtocol"
    GuardedProtocol.limits = ConnectionLimits.of_this_process()
    env = read_environment()
    # Whether there is a page is known behind the proxy, which answers 404 if there is none.
    access = AccessControl(CallerRules.of(env, has_page=True), signer=None)
    cross_origin = CrossOrigin(env.cors_origins)
    return [Middleware(Gate, access=access, cross_origin=cross_origin, is_proxy=True)]


class Gate:
    """ASGI middleware that limits and checks requests.

    With `is_proxy` it runs where clients connect, so it also answers probes, rejects requests until
    the application has been ready once, and sends files piece by piece.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessCheck,
        limits: GateLimits | None = None,
        *,
        cross_origin: CrossOrigin | None = None,
        is_proxy: bool = False,
    ) -> None:
        self._app = app
        self._cross_origin = cross_origin or CrossOrigin()
        self._access = access
        self._limits = limits or GateLimits()
        self._bodies = Bodies(self._limits.body)
        self._batches = Bodies(self._limits.batch)
        self._forwarded = 0
        self._uploads = Uploads(app, self._limits.uploads)
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
        send = self._cross_origin.readable(scope, send)
        if (preflight := self._cross_origin.preflight(scope)) is not None:
            await preflight(scope, receive, send)
            return
        try:
            rejection = self._rejection(scope) or await self._pass(scope, receive, send, abort)
        except ClientGone:
            where = f"{scope['method']} {scope['path'][:100]!r}"
            logger.info("a client disconnected before its request was complete: %s", where)
            return
        if rejection is not None:
            await self._reject(rejection, scope, receive, send)

    def _rejection(self, scope: Scope) -> Rejection | None:
        """Decide from headers and URL alone."""
        rejection = self._access.check(scope)
        if rejection is None and has_body(scope) and scope["method"] not in WITH_BODY:
            return NO_BODY
        return rejection

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Rejection | None:
        """Answer or forward the request, or return why neither was possible."""
        path, is_read = route_path(scope), scope["method"] in ("GET", "HEAD")
        if self._probes is not None and not path.startswith(SERVES_OWN):
            if path in self._probes and is_read:
                await self._probe(path, scope, receive, send)
                return None
            if not await self._probes.is_past_start(scope):
                return STARTING
        if self._files is not None and is_file(path) and scope["method"] == "GET":
            return await self._send_file(scope, receive, send, abort)
        if self._is_full(scope):
            return BUSY
        if takes(scope, self._limits.body.max_bytes):
            return await self._take_upload(scope, receive, send, abort)
        bodies = self._batches if path == BATCHES_PATH else self._bodies
        try:
            body = await bodies.read(scope, receive)
        except BodyTooLarge:
            return too_large(bodies.max_bytes)
        except BodyTooSlow:
            return TOO_SLOW
        whole = replay(body, receive)
        if has_files_inside(scope, body):
            return await self._take_upload(scope, whole, send, abort)
        return await self._forward(scope, whole, send, abort)

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Rejection | None:
        """Let the application answer a request whose body has been read."""
        if self._is_full(scope):
            return BUSY
        forwarded = ForwardedSend(send, abort, self._limits.send_s)
        with self._place():
            await self._app(scope, receive, forwarded)
        return None if forwarded.has_begun else UNAVAILABLE

    def _is_full(self, scope: Scope) -> bool:
        """Whether there is no place for a request; probes always have one."""
        is_probe = route_path(scope) in (HC, HEALTH) and scope["method"] in ("GET", "HEAD")
        return self._forwarded >= self._limits.forwarded and not is_probe

    async def _probe(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._probes is not None
        answer = await self._probes.answer(path, scope)
        headers = {key.decode(): value.decode() for key, value in answer.headers}
        response = Response(answer.body, answer.status, headers, "application/json")
        await response(scope, receive, send)

    async def _send_file(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Rejection | None:
        assert self._files is not None
        try:
            await self._files.answer(scope, receive, send, abort)
        except TooManyReaders:
            return TOO_MANY_READERS
        except Unanswered:
            return UNAVAILABLE
        return None

    async def _take_upload(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> Rejection | None:
        """Store what a request uploads, and answer it; or forward the job that comes with files."""
        body = UploadBody(receive, self._limits.uploads)
        try:
            taken = await self._uploads.take(scope, body)
        except TooManyWriters:
            return TOO_MANY_WRITERS
        except BodyTooSlow:
            return UPLOAD_TOO_SLOW
        except FormInvalid as exc:
            return invalid_form(str(exc))
        except DocumentTooLarge:
            return too_large(self._limits.body.max_bytes)
        except Unanswered:
            return UNAVAILABLE
        if isinstance(taken, JobDocument):
            return await self._forward(taken.scope, replay(taken.body, receive), send, abort)
        response = Response(taken.body, taken.status)
        response.raw_headers = list(taken.headers)
        await self._send_early(response, scope, receive, send, is_over=body.is_over)
        return None

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self._forwarded += 1
        try:
            yield
        finally:
            self._forwarded -= 1

    async def _reject(
        self, rejection: Rejection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = JSONResponse(rejection.body(), rejection.status_code, rejection.headers)
        await self._send_early(response, scope, receive, send, is_over=not has_body(scope))

    async def _send_early(
        self, response: Response, scope: Scope, receive: Receive, send: Send, *, is_over: bool
    ) -> None:
        """Send an answer to a client that may still be sending. `is_over`: it is not."""
        if is_over:
            await response(scope, receive, send)
            return
        await send_early(response, receive, send, self._limits.linger_s)


def _cleaned(scope: Scope) -> tuple[Scope, Callable[[], None]]:
    """Return the scope without what steers Serve, and a function that closes the connection."""
    extensions = dict(scope.get("extensions") or {})
    abort = extensions.pop(ABORT, lambda: None)
    headers = [
        (key, value)
        for key, value in scope["headers"]
        if key not in _SERVE_HEADERS
        and (key != b"x-request-id" or _REQUEST_ID.fullmatch(value) is not None)
    ]
    return {**scope, "headers": headers, "extensions": extensions}, abort
