"""Reads the body of every request before its route runs, within limits of size and time."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.job_api.bodies import (
    BATCH_BODIES,
    BATCHES_PATH,
    LINGER_S,
    Bodies,
    BodyLimits,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    replay,
    send_early,
)
from orchestrator.service.errors import Rejected, error_answer

USUAL_BODIES = BodyLimits(max_bytes=1024 * 1024, grace_s=15.0, whole_s=15.0, concurrent=1024)


class BodyLimit:
    """ASGI middleware that answers 413 to a large body and 408 to a slow one."""

    def __init__(
        self, app: ASGIApp, usual: BodyLimits = USUAL_BODIES, batch: BodyLimits = BATCH_BODIES
    ) -> None:
        self._app = app
        self._usual, self._batches = Bodies(usual), Bodies(batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on once its body is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        bodies = self._batches if path == BATCHES_PATH else self._usual
        try:
            body = await bodies.read(scope, receive)
        except BodyTooLarge:
            text = f"The body has more than {bodies.max_bytes} bytes."
            await _refuse(Rejected(413, "body_too_large", text), receive, send)
        except BodyTooSlow:
            text = "The body did not arrive in time."
            await _refuse(Rejected(408, "body_too_slow", text), receive, send)
        except ClientGone:
            return
        else:
            await self._app(scope, replay(body, receive), send)


async def _refuse(rejected: Rejected, receive: Receive, send: Send) -> None:
    await send_early(error_answer(rejected), receive, send, LINGER_S)
