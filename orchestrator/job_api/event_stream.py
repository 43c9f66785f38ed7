"""The answer that a follower of a job gets: server-sent events, and where a reader continues."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 15.0  # a comment, so that proxies keep a quiet stream open


class EventStream(StreamingResponse):
    """Sends encoded events until they end or the reader disconnects, and then closes them.

    FastAPI encodes the events, but does not stream them: docs/dependencies.md says why.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], status_code: int = 200) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, status_code, headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. See the class."""
        # A reader that disconnects while it is sent something would leave the generator suspended.
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


def read_event_id(last_event_id: str | None) -> int:
    """Return the number in `Last-Event-ID`; 0, the beginning, if it is none of ours."""
    if last_event_id is None or not (last_event_id.isascii() and last_event_id.isdecimal()):
        return 0
    return int(last_event_id[:9])
