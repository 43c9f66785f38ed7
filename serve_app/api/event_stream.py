"""A job as server-sent events: every change of phase, however short, and samples in between.

Changes of phase come from the registry, so that a reader who connects late, reconnects (with
`Last-Event-ID`) or reaches another replica misses none of the last ones.

FastAPI encodes the events, but does not stream them: docs/dependencies.md says why.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from serve_app.api.answers import job_body
from serve_app.gate.links import Links
from serve_app.jobs.job import Job, PhaseEvent
from serve_app.jobs.service import JobService

KEEP_ALIVE_S = 15.0  # a comment, so that proxies keep a quiet stream open


class EventStreamResponse(StreamingResponse):
    """Sends encoded events until they end or the reader disconnects, and then closes `events`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], status_code: int = 200) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, status_code, headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A reader that disconnects while it is sent something would leave the generator suspended.
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def event_stream(
    service: JobService,
    job_id: str,
    last_id: str | None,
    links: Links | None = None,
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncGenerator[bytes, None]:
    """Yield encoded `progress` events while the job waits and runs, then one `end` event.

    `last_id` is the id of the last event that the reader has received, if any.
    """
    last_sample: dict[str, Any] = {}
    sent_at = time.monotonic()
    async with aclosing(service.follow(job_id, _read_id(last_id))) as states:
        async for state in states:
            events = []
            if state is not None:
                events = [_change_event(state.job, change, links) for change in state.events]
                sample = job_body(state.job, links)
                is_sent = bool(state.events) and state.events[-1].progress == state.job.progress
                if state.job.is_terminal:
                    events.append(_event("end", sample))
                elif sample != last_sample and not is_sent:
                    events.append(_event("progress", sample))
                last_sample = sample
            if not events and time.monotonic() - sent_at >= keep_alive_s:
                events = [KEEPALIVE_COMMENT]
            for event in events:
                yield event
                sent_at = time.monotonic()


def _change_event(job: Job, change: PhaseEvent, links: Links | None) -> bytes:
    body = job_body(_as_of(job, change), links)
    return _event("progress", body, id=str(change.number))


def _event(kind: str, body: dict[str, Any], id: str | None = None) -> bytes:
    """Return one event. Only changes of phase have an id: a sample is made for each reader."""
    return format_sse_event(data_str=json.dumps(body), event=kind, id=id)


def _as_of(job: Job, change: PhaseEvent) -> Job:
    """Return the job as it was when it changed its phase."""
    return replace(
        job,
        status="running",
        attempt=change.attempt,
        updated=change.happened,
        progress=change.progress,
        outcome=None,
        queue_position=None,
    )


def _read_id(last_id: str | None) -> int:
    """Return the number of an event; the beginning for an id that is not one of ours."""
    is_number = last_id is not None and last_id.isascii() and last_id.isdecimal()
    return int(last_id[:9]) if is_number and last_id else 0
