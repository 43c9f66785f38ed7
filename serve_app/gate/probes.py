"""Whether the application behind Serve's proxy is ready, asked once for all who want to know.

While Serve starts an application its proxy answers 404, and then holds requests until a replica
exists. Nobody outside should meet either: a probe is one question that all waiting requests share,
so that it takes one place of the ingress however many ask.
"""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Scope

from serve_app.gate.asgi import Answer, AnswerTooLarge, ask

HC, HEALTH = "/hc", "/health"
_MAX_ANSWER_BYTES = 64 * 1024
_ABANDONED_AFTER_S = 30.0
_RETRY = [(b"retry-after", b"2")]


class Probe:
    """Asks one path of the inner application, at most one question at a time."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path
        self._question: asyncio.Task[Answer | None] | None = None

    async def ask(self, scope: Scope, wait_s: float) -> Answer | None:
        """Return the inner application's own 200 or 503; None for anything else, or none in time.

        A question that is not answered in time goes on, and its answer is the next one's.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask(scope))
        await asyncio.wait({self._question}, timeout=wait_s)
        return self._question.result() if self._question.done() else None

    async def _ask(self, scope: Scope) -> Answer | None:
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
                answer = await ask(self._app, own, _MAX_ANSWER_BYTES)
        except (TimeoutError, AnswerTooLarge):
            return None
        return answer if answer.status in (200, 503) and _is_object(answer.body) else None


class Probes:
    """`/hc` and `/health`, and whether the application has been ready once."""

    def __init__(self, app: ASGIApp, first_wait_s: float, wait_s: float) -> None:
        """`first_wait_s`: how long an answer is waited for before the first readiness; `wait_s`:
        afterwards, when a slow answer must not look like a worker that is down.
        """
        self._probes = {path: Probe(app, path) for path in (HC, HEALTH)}
        self._first_wait_s = first_wait_s
        self._wait_s = wait_s
        self._has_been_ready = False

    def __contains__(self, path: str) -> bool:
        return path in self._probes

    async def answer(self, path: str, scope: Scope) -> Answer:
        """Return what a probe of `path` is answered, 503 `starting` if nobody answers it."""
        wait_s = self._wait_s if self._has_been_ready else self._first_wait_s
        answer = await self._probes[path].ask(scope, wait_s)
        if answer is None:
            return Answer(503, _RETRY, b'{"status":"starting"}')
        if path == HC and answer.status == 200:
            self._has_been_ready = True
        return Answer(answer.status, _RETRY if answer.status == 503 else [], answer.body)

    async def is_past_start(self, scope: Scope) -> bool:
        """Whether `/hc` has been answered with 200 at some time, now included."""
        if not self._has_been_ready:
            await self.answer(HC, scope)
        return self._has_been_ready


def _is_object(body: bytes) -> bool:
    """Whether a body is the application's own: Serve's are plain text."""
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False
