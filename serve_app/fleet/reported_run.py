"""One run of a job that is reported to an orchestrator: its progress, its end, its cancellation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from musetalk_pipeline.errors import PipelineError
from orchestrator.client import ClaimedJob, FailureReport, SuccessReport, WorkerClient
from serve_app.contract.outcomes import Failure, Outcome, Success, failure_of
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.progress_reporter import ProgressReporter
from serve_app.jobs.job import ProgressCallback

logger = logging.getLogger(__name__)

MAX_ERROR_CHARS = 4000


class ReportedRun:
    """Runs one job, reports its progress, and stops it if the orchestrator answers that it is gone.

    Args:
        run: runs the job and passes on its progress. Its own deadlines end it.
        cancel: cancels the running job.
    """

    def __init__(
        self,
        client: WorkerClient,
        job: ClaimedJob,
        options: WorkerOptions,
        *,
        run: Callable[[ProgressCallback], Awaitable[Outcome]],
        cancel: Callable[[], Awaitable[None]],
        batch_size: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._options = options
        self._run = run
        self._cancel = cancel
        self._gone = asyncio.Event()
        self._reporter = ProgressReporter(
            client,
            job,
            options,
            on_gone=self._set_gone,
            batch_size=batch_size,
            clock=clock,
        )

    def stop(self) -> None:
        """End the run as after a 409: the orchestrator has cancelled the job."""
        self._gone.set()

    async def to_end(self) -> SuccessReport | FailureReport | None:
        """Run the job to its end. Return what to report, None if the job is gone."""
        self._reporter.start()
        running = asyncio.create_task(self._run_job(), name="reported job")
        try:
            await self._until_done_or_gone(running)
        finally:
            await _end(running, self._options.cancel_wait_s)
            await self._reporter.close()
        if self._gone.is_set():
            return None
        return _report_of_task(running, self._reporter.fraction)

    async def _run_job(self) -> Outcome:
        return await self._run(self._reporter.update)

    async def _set_gone(self) -> None:
        self._gone.set()

    async def _until_done_or_gone(self, running: asyncio.Task[Outcome]) -> None:
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if running.done():
            return
        try:
            async with asyncio.timeout(self._options.cancel_wait_s):
                await self._cancel()
                await asyncio.wait({running})
        except Exception:
            # The job could not be cancelled properly. Its task is cancelled next.
            logger.exception("job not cancelled in time", extra={"job_id": self._job.job_id})


def report_of(outcome: Outcome, fraction: float) -> SuccessReport | FailureReport:
    """Return what to report of an outcome.

    A success needs an address and metrics (known fault 2). A failure has the job's own error
    message (known fault 7).
    """
    if isinstance(outcome, Failure):
        named = ("error_type", "code", "stage", "input", "retryable")
        facts = {name: getattr(outcome, name) for name in named}
        known = {name: value for name, value in facts.items() if value is not None}
        error = sendable(outcome.error_message)
        return FailureReport(error, fraction, known, outcome.receipt)
    return _report_of_success(outcome, fraction)


def sendable(text: str) -> str:
    """Return text that fits into a report, of limited length and valid as UTF-8."""
    return text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()


def _report_of_success(outcome: Success, fraction: float) -> SuccessReport | FailureReport:
    if not outcome.output_url:
        text = "The job ended without an output address. Send it again."
        return FailureReport(text, fraction)
    if not outcome.metrics:
        return FailureReport("The job ended without metrics. Send it again.", fraction)
    metrics = dict(outcome.metrics)
    receipt = metrics.pop("receipt", None)  # fields of their own in reports
    upload = metrics.pop("upload", {})
    return SuccessReport(outcome.output_url, metrics, receipt, upload)


def _report_of_task(
    running: asyncio.Task[Outcome], fraction: float
) -> SuccessReport | FailureReport:
    """Return what to report of a finished task. Its exception is not raised again."""
    if running.cancelled():
        text = "The job was interrupted before it was done. Send it again."
        return FailureReport(text, fraction, {"code": "interrupted"})
    exc = running.exception()
    if isinstance(exc, PipelineError):
        return report_of(failure_of(exc, {}), fraction)
    if exc is not None:
        logger.error("job crashed", exc_info=exc)
        reason = f"The worker failed unexpectedly ({type(exc).__name__}). Send the job again."
        return FailureReport(reason, fraction)
    return report_of(running.result(), fraction)


async def _end(running: asyncio.Task[Outcome], wait_s: float) -> None:
    """Cancel a task that is not done, and give it time to clean up."""
    if running.done():
        return
    running.cancel()
    await asyncio.wait({running}, timeout=wait_s)
