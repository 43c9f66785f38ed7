"""Shows in the metrics how many jobs wait and run."""

import asyncio
import contextlib

from orchestrator.store.errors import StoreUnavailable
from serve_app.jobs.service import JobService
from serve_app.telemetry.metrics import JOBS_QUEUED, JOBS_RUNNING

PAUSE_S = 5.0  # Ray sends metrics every ten seconds


async def show_queue_length(jobs: JobService, pause_s: float = PAUSE_S) -> None:
    """Set the gauges until cancelled. One keeps its value while the registry cannot be read."""
    while True:
        JOBS_RUNNING.set(jobs.active_jobs)
        with contextlib.suppress(StoreUnavailable):  # whoever needs the registry logs that
            JOBS_QUEUED.set(await jobs.threads.read(jobs.registry.count_queued))
        await asyncio.sleep(pause_s)
