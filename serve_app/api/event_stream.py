"""A job as server-sent events: every change of phase, however short, and samples in between.

Changes of phase come from the registry, so that a reader who comes late, comes back (with
`Last-Event-ID`) or asks another replica misses none of the last ones.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from serve_app.api.answers import job_body
from serve_app.gate.links import Links
from serve_app.jobs.job import Job, PhaseEvent
from serve_app.jobs.service import JobService

KEEP_ALIVE_S = 15.0  # a comment line, so that proxies keep a quiet stream open


async def job_events(
    service: JobService, job_id: str, last_id: str | None, links: Links | None = None
) -> AsyncIterator[str]:
    """Yield `progress` events while the job waits and runs, then one `end` event.

    `last_id` is the id of the last event that the reader has seen, if any.
    """
    sampled, spoke_at = "", time.monotonic()
    async for seen in service.follow(job_id, *_read_id(last_id)):
        lines = []
        if seen is not None:
            lines = [
                _event("progress", job_body(_as_of(seen.job, event), links), _id(seen.job, event))
                for event in seen.events
            ]
            is_over = seen.job.is_terminal
            now = _event("end" if is_over else "progress", job_body(seen.job, links))
            is_told = bool(seen.events) and seen.events[-1].progress == seen.job.progress
            if is_over or (now != sampled and not is_told):
                lines.append(now)
            sampled = now
        if not lines and time.monotonic() - spoke_at >= KEEP_ALIVE_S:
            lines = [": still here\n\n"]
        for line in lines:
            yield line
            spoke_at = time.monotonic()


def _event(kind: str, body: dict[str, Any], name: str = "") -> str:
    """Return one event. Changes of phase have an id; a sample is made anew for whoever comes."""
    return f"{name}event: {kind}\ndata: {json.dumps(body)}\n\n"


def _id(job: Job, change: PhaseEvent) -> str:
    return f"id: {job.run}.{change.number}\n"


def _as_of(job: Job, event: PhaseEvent) -> Job:
    """Return the job as it was when it changed its phase."""
    return replace(
        job,
        status="running",
        attempt=event.attempt,
        updated=event.happened,
        progress=event.progress,
        outcome=None,
        queue_position=None,
    )


def _read_id(last_id: str | None) -> tuple[int, int]:
    """Return run and number; the beginning for an id that is not ours."""
    run, _, number = (last_id or "").partition(".")
    if not (run.isdecimal() and number.isdecimal() and len(run + number) <= 18):
        return 0, 0
    return int(run), int(number)
