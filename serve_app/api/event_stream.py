"""A job as server-sent events: every change of phase, however short, and samples in between.

Changes of phase come from the registry, so that a reader who connects late, reconnects (with
`Last-Event-ID`) or reaches another replica misses none of the last ones. FastAPI encodes the events
and sends a comment if a stream is quiet for 15 s.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi.sse import ServerSentEvent

from serve_app.api.answers import job_body
from serve_app.gate.links import Links
from serve_app.jobs.job import Job, PhaseEvent
from serve_app.jobs.service import JobService


async def events_of(
    service: JobService, job_id: str, last_id: str | None, links: Links | None = None
) -> AsyncIterator[ServerSentEvent]:
    """Yield `progress` events while the job waits and runs, then one `end` event.

    `last_id` is the id of the last event that the reader has received, if any.
    """
    last_sample: dict[str, Any] = {}
    async for state in service.follow(job_id, *_read_id(last_id)):
        if state is None:
            continue
        job = state.job
        for change in state.events:
            body = job_body(_as_of(job, change), links)
            yield _event("progress", body, id=f"{job.run}.{change.number}")
        sample = job_body(job, links)
        is_sent = bool(state.events) and state.events[-1].progress == job.progress
        if job.is_terminal:
            yield _event("end", sample)
        elif sample != last_sample and not is_sent:
            yield _event("progress", sample)
        last_sample = sample


def _event(kind: str, body: dict[str, Any], id: str | None = None) -> ServerSentEvent:
    """Return one event. Only changes of phase have an id: a sample is made for each reader."""
    return ServerSentEvent(raw_data=json.dumps(body), event=kind, id=id)


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


def _read_id(last_id: str | None) -> tuple[int, int]:
    """Return run and number; the beginning for an id that is not one of ours."""
    run, _, number = (last_id or "").partition(".")
    if not (run.isdecimal() and number.isdecimal() and len(run + number) <= 18):
        return 0, 0
    return int(run), int(number)
