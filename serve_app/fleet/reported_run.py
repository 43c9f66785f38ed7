"""One run of a job that an orchestrator is told about: its progress, its end, and being stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from musetalk_pipeline.errors import PipelineError
from orchestrator.client import ClaimedJob, Failed, Succeeded, WorkerClient
from serve_app.contract.outcomes import Failure, Outcome, Progress, Success
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.progress_reporter import ProgressReporter

logger = logging.getLogger(__name__)

MAX_ERROR_CHARS = 4000

Note = Callable[[Progress], None]


class ReportedRun:
    """The run of one job, its progress reports, and what the orchestrator says to them.

    Args:
        run: does the job, noting its progress; its own deadlines end it, nothing here does.
        cancel: asks for the end of the running job.
    """

    def __init__(
        self,
        client: WorkerClient,
        job: ClaimedJob,
        options: WorkerOptions,
        *,
        run: Callable[[Note], Awaitable[Outcome]],
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
        """End the run as after a 409: the orchestrator said that it wants it no more."""
        self._gone.set()

    async def end(self) -> Succeeded | Failed | None:
        """Run the job to its end; None if it is not this worker's any more."""
        self._reporter.start()
        running = asyncio.create_task(self._run_job(), name="reported job")
        try:
            await self._until_done_or_gone(running)
        finally:
            await _end(running, self._options.cancel_wait_s)
            await self._reporter.close()
        if self._gone.is_set():
            return None
        return _final_state(running, self._reporter.fraction)

    async def _run_job(self) -> Outcome:
        return await self._run(self._reporter.note)

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
            # Another part's failure to cancel; the runner's own cancellation follows.
            logger.exception("job not cancelled in time", extra={"job_id": self._job.job_id})


def end_of(outcome: Outcome, fraction: float) -> Succeeded | Failed:
    """Return what to report of an outcome: a success only if it has all that makes one (known
    fault 2), a failure with the job's own sentence (known fault 7).
    """
    if isinstance(outcome, Failure):
        return Failed(sendable(outcome.error_message), fraction)
    return _success(outcome, fraction)


def sendable(text: str) -> str:
    """Return text that fits a report: bounded, and encodable whatever it was made from."""
    return text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()


def _success(outcome: Success, fraction: float) -> Succeeded | Failed:
    if not outcome.output_url:
        return Failed("The job ended without an output address. Send it again.", fraction)
    if not outcome.metrics:
        return Failed("The job ended without metrics. Send it again.", fraction)
    return Succeeded(outcome.output_url, outcome.metrics)


def _final_state(running: asyncio.Task[Outcome], fraction: float) -> Succeeded | Failed:
    """Return what to report of a finished runner. An exception of it ends here."""
    if running.cancelled():
        return Failed("The job was interrupted before it was done. Send it again.", fraction)
    exc = running.exception()
    if isinstance(exc, PipelineError):
        return Failed(sendable(exc.message), fraction)
    if exc is not None:
        logger.error("job crashed", exc_info=exc)
        reason = f"The worker failed unexpectedly ({type(exc).__name__}). Send the job again."
        return Failed(reason, fraction)
    return end_of(running.result(), fraction)


async def _end(running: asyncio.Task[Outcome], wait_s: float) -> None:
    """Cancel a runner that is not done, and give it time to clean up."""
    if running.done():
        return
    running.cancel()
    await asyncio.wait({running}, timeout=wait_s)
