"""Reads the body of every request before its route runs, within limits of size and time."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.job_api.bodies import (
    BATCH_BODIES,
    BATCHES_PATH,
    Bodies,
    BodyLimits,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    replay,
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
            await self._refuse(Rejected(413, "body_too_large", text), scope, receive, send)
        except BodyTooSlow:
            text = "The body did not arrive in time."
            await self._refuse(Rejected(408, "body_too_slow", text), scope, receive, send)
        except ClientGone:
            return
        else:
            await self._app(scope, replay(body, receive), send)

    async def _refuse(self, rejected: Rejected, scope: Scope, receive: Receive, send: Send) -> None:
        rejected.headers["Connection"] = "close"  # what is left of the body is not read
        await error_answer(rejected)(scope, receive, send)
