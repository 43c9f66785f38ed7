"""Readiness of the application behind Serve's proxy, with one request for all who wait for it.

While Serve starts an application its proxy answers 404, and then holds requests until a replica
exists. Clients should meet neither. All waiting requests share one request to the ingress, so that
probes occupy one place there, however many clients send them.
"""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Scope

from serve_app.gate.asgi import AnswerTooLarge, WholeAnswer, call

HC, HEALTH = "/hc", "/health"
_MAX_ANSWER_BYTES = 64 * 1024
_ABANDONED_AFTER_S = 30.0
_RETRY = [(b"retry-after", b"2")]


class Probe:
    """Requests one path of the inner application, never twice at the same time."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path
        self._request: asyncio.Task[WholeAnswer | None] | None = None

    async def answer(self, scope: Scope, wait_s: float) -> WholeAnswer | None:
        """Return the inner application's own 200 or 503; None for anything else, or if it is late.

        A request that is not answered in time continues, and the next caller gets its answer.
        """
        if self._request is None or self._request.done():
            self._request = asyncio.create_task(self._fetch(scope))
        await asyncio.wait({self._request}, timeout=wait_s)
        return self._request.result() if self._request.done() else None

    async def _fetch(self, scope: Scope) -> WholeAnswer | None:
        own = {
            **scope,
            "method": "GET",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        try:
            async with asyncio.timeout(_ABANDONED_AFTER_S):
                answer = await call(self._app, own, _MAX_ANSWER_BYTES)
        except (TimeoutError, AnswerTooLarge):
            return None
        return answer if answer.status in (200, 503) and _is_object(answer.body) else None


class Probes:
    """`/hc` and `/health`, and whether the application has been ready once."""

    def __init__(self, app: ASGIApp, first_wait_s: float, wait_s: float) -> None:
        """Wait `first_wait_s` for an answer before the first readiness, and `wait_s` afterwards,
        when a slow answer must not look like a worker that is down.
        """
        self._probes = {path: Probe(app, path) for path in (HC, HEALTH)}
        self._first_wait_s = first_wait_s
        self._wait_s = wait_s
        self._has_been_ready = False

    def __contains__(self, path: str) -> bool:
        return path in self._probes

    async def answer(self, path: str, scope: Scope) -> WholeAnswer:
        """Return the answer to a probe of `path`; 503 `starting` if the application gives none."""
        wait_s = self._wait_s if self._has_been_ready else self._first_wait_s
        answer = await self._probes[path].answer(scope, wait_s)
        if answer is None:
            return WholeAnswer(503, _RETRY, b'{"status":"starting"}')
        if path == HC and answer.status == 200:
            self._has_been_ready = True
        return WholeAnswer(answer.status, _RETRY if answer.status == 503 else [], answer.body)

    async def is_past_start(self, scope: Scope) -> bool:
        """Whether `/hc` has returned 200 at least once."""
        if not self._has_been_ready:
            await self.answer(HC, scope)
        return self._has_been_ready


def _is_object(body: bytes) -> bool:
    """Whether a body is the application's own: Serve's are plain text."""
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False
