"""A whole worker against the fake orchestrator, wired as the ingress wires it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musetalk_pipeline.files import write_atomically
from orchestrator.client import (
    BufferClient,
    FinalReport,
    MainClient,
    OrchestratorHttp,
    Timeouts,
    WorkerProfile,
)
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.worker import FleetWorker
from serve_app.jobs.job import SubmissionOptions
from tests.contract.fake_orchestrator import FakeOrchestrator, TlsFiles

WORKER_ID = "machine-7"
SYSTEM_INFO: dict[str, Any] = {
    "cpu_cores_physical": 4,
    "cpu_cores_logical": 8,
    "cpu_model": "Test CPU",
    "ram_total_gb": 16.0,
    "ram_available_gb": 9.5,
    "disk_total_gb": 100.0,
    "disk_free_gb": 40.0,
    "download_speed_mbps": None,
}
DONE = Success("https://files.example/avatar/outputs/job.mp4", {"total_time": 1.5})
FAILED = Failure(
    error_type="media_error",
    error_message="No face was found in any frame. Use a video that shows one.",
    code="no_face",
    stage="preprocessing",
    retryable=False,
    status_code=422,
)
# Generous, so that a busy machine fails no test; those that stall on purpose shorten their own.
QUICK = Timeouts(register_s=5.0, heartbeat_s=5.0, claim_s=5.0, progress_s=5.0, report_s=5.0)
OPTIONS = WorkerOptions(
    heartbeat_interval_s=0.05,
    progress_interval_s=0.02,
    progress_repeat_s=0.05,
    report_wait_s=15.0,
    cancel_wait_s=15.0,
)

ProgressCallback = Callable[[Progress], None]


@dataclass
class Desk:
    """The runner of a test: what it does to a job, what it saw, and a cancel that works."""

    job: Callable[[JobRequest, ProgressCallback], Awaitable[Outcome]] | None = None
    ran: list[JobRequest] = field(default_factory=list)
    submissions: list[SubmissionOptions] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[Outcome]] = field(default_factory=dict)
    is_able: bool = True

    async def run(
        self, request: JobRequest, on_progress: ProgressCallback, submission: SubmissionOptions
    ) -> Outcome:
        self.ran.append(request)
        self.submissions.append(submission)
        if self.job is None:
            return DONE
        return await self.job(request, on_progress)

    async def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def can_run(self) -> bool:
        return self.is_able


@dataclass
class Rig:
    """One worker. `pauses`: what it slept between claims instead of sleeping."""

    fake: FakeOrchestrator
    worker: FleetWorker
    outbox: Outbox
    desk: Desk
    pauses: list[float]

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something without blocking the loop."""
        await asyncio.to_thread(self.fake.wait_until, is_true)


async def preparing(on_progress: ProgressCallback) -> None:
    """Report the phases before the frames, as the driver does."""
    on_progress(Progress(Phase.DOWNLOADING, 0.0))
    on_progress(Progress(Phase.INFERRING, 0.05, 0, 100))


@contextlib.asynccontextmanager
async def worker_rig(
    fake: FakeOrchestrator,
    folder: Path,
    *,
    desk: Desk | None = None,
    options: WorkerOptions = OPTIONS,
    timeouts: Timeouts = QUICK,
    is_buffer: bool = False,
    is_beating: bool = False,
    is_sending: bool = True,
    tls: TlsFiles | None = None,
    worker_id: str = WORKER_ID,
    outbox_capacity: int = 1000,
    clock: Callable[[], float] = time.monotonic,
    system_info: dict[str, Any] = SYSTEM_INFO,
    write: Callable[[Path, str], None] = write_atomically,
) -> AsyncIterator[Rig]:
    """Run a worker with its background tasks; end and close everything afterwards."""
    desk = desk or Desk()
    pauses: list[float] = []
    profile = WorkerProfile(
        worker_id,
        "RTX-3090-24GB",
        "main",
        "salad",
        capacity=options.capacity,
        system_info=system_info,
    )

    def connect() -> MainClient | BufferClient:
        context = tls.client_context() if tls else None
        http = OrchestratorHttp(fake.url, fake.api_key, tls=context)
        kind = BufferClient if is_buffer else MainClient
        return kind(http, profile, timeouts)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    outbox = Outbox(
        folder / "outbox",
        capacity=outbox_capacity,
        first_pause_s=0.02,
        longest_pause_s=0.1,
        write=write,
    )
    worker = FleetWorker(
        connect,
        outbox,
        ClaimJournal(folder / "claims", worker_id),
        runner=desk.run,
        cancel=desk.cancel,
        can_run=desk.can_run,
        options=options,
        batch_size=lambda: 8,
        sleep=sleep,
        clock=clock,
    )
    sender = connect()
    background = []
    if is_sending:
        background.append(asyncio.create_task(outbox.deliver_forever(sender.send_report)))
    if is_beating:
        background.append(asyncio.create_task(worker.beat_forever()))
    try:
        yield Rig(fake, worker, outbox, desk, pauses)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await worker.aclose()
        await sender.aclose()


def has_reports(fake: FakeOrchestrator, count: int) -> bool:
    return len(fake.jobs["job-1"].progress) >= count


def last_error(fake: FakeOrchestrator) -> str | None:
    """Return the error in the newest heartbeat; `none yet` before the first."""
    beats = fake.of("heartbeat")
    error: str | None = beats[-1].body["error"] if beats else "none yet"
    return error


async def accept(each: FinalReport) -> None:
    """Take a report, as an orchestrator does that is content."""


def report(number: int) -> FinalReport:
    return FinalReport(f"job-{number}", f"/internal/jobs/job-{number}/progress", "{}")
