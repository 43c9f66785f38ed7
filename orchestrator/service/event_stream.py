"""A job as server-sent events: every change that is stored, and then its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from orchestrator.job_api.event_stream import KEEP_ALIVE_S
from orchestrator.service.access import ClientCaller
from orchestrator.service.job_messages import event_body
from orchestrator.service.services import Services

POLL_S = 2.0  # for the changes that another process of this service stores
MAX_READERS = 200
MAX_STREAM_S = 3600.0  # a reader then connects again, with Last-Event-ID


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
