"""A job as server-sent events: every change that is stored, and then its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from orchestrator.service.access import ClientCaller
from orchestrator.service.job_messages import event_body
from orchestrator.service.services import Services

POLL_S = 2.0  # for the changes that another process of this service stores
KEEP_ALIVE_S = 15.0
MAX_READERS = 200
MAX_STREAM_S = 3600.0  # a reader then connects again, with Last-Event-ID


class EventStream(StreamingResponse):
    """Sends events until they end or the reader disconnects, and then closes them."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A reader that disconnects while it is sent something would leave the generator suspended.
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def event_stream(
    services: Services, job_id: str, caller: ClientCaller, number: int
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each change after `number`, and one `end` event with the whole job."""
    loop = asyncio.get_running_loop()
    until, quiet_since = loop.time() + MAX_STREAM_S, loop.time()
    changed, close = services.news.open(job_id)
    try:
        while loop.time() < until:
            changed.clear()
            job, events = await services.run(services.store.follow, job_id, number, caller.sees)
            for event in events:
                body = event_body(event, is_operator=caller.sees is None)
                number = event.number
                yield format_sse_event(data_str=json.dumps(body), event="progress", id=str(number))
            if job.state.is_terminal:
                yield format_sse_event(data_str=json.dumps(services.body(job)), event="end")
                return
            if services.is_stopping.is_set():
                return
            if events:
                quiet_since = loop.time()
            elif loop.time() - quiet_since >= KEEP_ALIVE_S:
                quiet_since = loop.time()
                yield KEEPALIVE_COMMENT
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await changed.wait()
    finally:
        close()
