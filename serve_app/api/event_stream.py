"""A job as server-sent events: every change of phase, however short, and samples in between.

Changes of phase come from the registry, so that a reader who connects late, reconnects (with
`Last-Event-ID`) or reaches another replica misses none of the last ones.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from orchestrator.job_api.event_stream import KEEP_ALIVE_S
from serve_app.api.answers import job_body
from serve_app.gate.links import Links
from serve_app.jobs.job import Job, PhaseEvent
from serve_app.jobs.service import JobService


async def event_stream(
    service: JobService,
    job_id: str,
    number: int,
    links: Links | None = None,
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncGenerator[bytes, None]:
    """Yield encoded `progress` events while the job waits and runs, then one `end` event.

    `number` is the id of the last event that the reader has received, 0 if it has none.
    """
    last_sample: dict[str, Any] = {}
    sent_at = time.monotonic()
    async with aclosing(service.follow(job_id, number)) as states:
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
