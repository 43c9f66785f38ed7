"""One job slot of a worker that polls an orchestrator.

    beat_forever   a heartbeat at every interval, from its own thread
    work_once      resume or claim ─► run ─► store the final report ─► wait for its acceptance
                                └─ progress, best effort; 404 or 409 to it stops the job

`work_once` is called inside a request that the ingress replica has accepted: a draining replica
accepts none, so it claims nothing, and is waited for while a job runs. What ends in which way:

- The job ends: its report is on disk before it is sent, and sent until it is accepted.
- The orchestrator says that the job is gone: it is cancelled and nothing is reported.
- `work_once` is cancelled or the process dies: the claim stays in the journal, and whoever speaks
  for this identity next resumes it. If nobody does, silence returns the job to the queue.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from musetalk_pipeline.errors import PipelineError
from orchestrator.client import ClaimedJob, Failed, Succeeded, WorkerClient
from orchestrator.errors import OrchestratorError
from serve_app.claim_journal import ClaimJournal, HeldJob
from serve_app.heartbeat import Heartbeats, Pulse
from serve_app.outbox import Outbox
from serve_app.progress_reporter import ProgressReporter
from serve_app.schemas import Failure, JobRequest, Outcome, Progress, Success

logger = logging.getLogger(__name__)

T = TypeVar("T")

Runner = Callable[[JobRequest, Callable[[Progress], None]], Awaitable[Outcome]]
Cancel = Callable[[str], Awaitable[None]]

MAX_ERROR_CHARS = 4000
MAX_STARTS = 3
CANNOT_WORK = "No replica can take a job."
OUTBOX_FULL = "Too many final reports wait to be accepted."


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Intervals and waits in seconds.

    `heartbeat_interval_s` and `claim_backoff_s` are the contract's; `progress_repeat_s` bounds how
    late a cancelled job is noticed (guess); `report_wait_s` is how long a slot stays busy with a
    report that is not accepted yet (as long as a worker may be silent); `uncalled_s` without a call
    of `work_once` an idle worker leaves its identity to a successor, if one waits for it.

    Raises:
        ValueError: an interval that no clock can keep.
    """

    heartbeat_interval_s: float = 5.0
    claim_backoff_s: tuple[float, ...] = (1.0, 2.0, 4.0)
    progress_interval_s: float = 1.0
    progress_repeat_s: float = 10.0
    report_wait_s: float = 30.0
    cancel_wait_s: float = 30.0
    uncalled_s: float = 30.0
    config_label: str = "default"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_interval_s < math.inf:
            raise ValueError("the heartbeat interval (POLL_INTERVAL_SEC) must be more than 0 s")


class Worker:
    """One worker identity: it beats, claims one job at a time, runs it and reports.

    Args:
        connect: makes a client; called once per event loop (the heartbeats have their own).
        outbox: shared by all slots of the process, which runs its `deliver_forever`.
        runner: does a job and returns its outcome; its own deadlines end it, nothing here does.
        cancel: ends a running job, by its `musetalk_job_id`.
        can_work: whether a job could run now. Asked before every claim.
    """

    def __init__(
        self,
        connect: Callable[[], WorkerClient],
        outbox: Outbox,
        journal: ClaimJournal,
        *,
        runner: Runner,
        cancel: Cancel,
        can_work: Callable[[], Awaitable[bool]],
        options: WorkerOptions | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = connect()
        self._connect = connect
        self._outbox = outbox
        self._journal = journal
        self._runner = runner
        self._cancel = cancel
        self._can_work = can_work
        self._options = options or WorkerOptions()
        self._sleep = sleep
        self._held: HeldJob | None = None
        self._settling_id: str | None = None  # its report is stored, not accepted yet
        self._is_working = False
        self._trouble: str | None = None
        self._called_at = time.monotonic()

    @property
    def current_job_id(self) -> str | None:
        """The job that this worker holds: running, being reported, or to be resumed."""
        held = self._held
        return held.job.job_id if held else self._settling_id

    async def beat_forever(self) -> None:
        """Send heartbeats until cancelled, the first at once, whatever else goes on."""
        heartbeats = Heartbeats(self._connect, self._pulse, self._options.heartbeat_interval_s)
        heartbeats.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.to_thread(heartbeats.stop))

    async def work_once(self) -> bool:
        """Do one job from claim to report; False if there was none to do.

        A second call while one is at work is answered False: a slot has one job.
        """
        self._called_at = time.monotonic()
        if self._is_working or not self._journal.acquire():
            return False  # the latter: a draining predecessor still speaks for this identity
        self._is_working = True
        try:
            return await self._work_once()
        finally:
            self._is_working = False

    async def aclose(self) -> None:
        """Close the connections and let another process speak for this identity."""
        await self._client.aclose()
        self._journal.release()

    def _pulse(self) -> Pulse | None:
        """Return what the next heartbeat says. Runs in the heartbeat thread."""
        if not self._journal.acquire():
            return None
        job_id = self.current_job_id
        if job_id is None and (left := self._journal.read()) is not None:
            job_id = left.job.job_id
        if job_id is not None:
            return Pulse("busy", job_id, self._trouble)
        if time.monotonic() - self._called_at > self._options.uncalled_s and (
            self._journal.is_wanted()
        ):
            # A drained replica gets no calls any more. Its successor has the identity from here on;
            # should there be none after all, the next beat takes it back.
            self._journal.release()
            return None
        return Pulse("idle", None, self._trouble)

    async def _claim(self) -> HeldJob | None:
        """Ask for a job, again after each backoff while the orchestrator does not answer."""
        for pause_s in (*self._options.claim_backoff_s, None):
            self._called_at = time.monotonic()
            self._trouble = await self._reason_not_to_claim()
            if self._trouble is not None:
                return None
            try:
                return await _to_the_end(self._claim_once())
            except OrchestratorError as exc:
                self._trouble = exc.message
                logger.warning("claim failed", extra={"error": exc.message})
                if pause_s is None or not exc.retryable:
                    return None
            await self._sleep(pause_s)
        raise AssertionError("unreachable: the last claim returns")

    async def _claim_once(self) -> HeldJob | None:
        claim = await self._client.claim()
        if claim.error:
            self._trouble = claim.error
            logger.warning("the orchestrator handed out no job", extra={"error": claim.error})
        if claim.job is None:
            return None
        logger.info("job claimed", extra={"job_id": claim.job.job_id})
        # Kept here at once: a caller that is cancelled now never sees the answer, but the job is
        # ours, and the next heartbeat says so.
        self._held = HeldJob(claim.job)
        return self._held

    async def _reason_not_to_claim(self) -> str | None:
        if not await self._can_work():
            return CANNOT_WORK
        if await asyncio.to_thread(lambda: self._outbox.is_full):
            return OUTBOX_FULL
        return None

    async def _work_once(self) -> bool:
        self._held = self._held or self._journal.read() or await self._claim()
        if self._held is None:
            return False
        await self._work(self._held)
        return True

    async def _work(self, held: HeldJob) -> None:
        self._held = held = await self._journal.start(held)
        end = await self._run(held)
        if end is None:
            await _to_the_end(self._forget())
            return
        try:
            name = await _to_the_end(self._store(held.job, end))
            if not await self._outbox.wait_settled(name, self._options.report_wait_s):
                logger.warning("final report waits", extra={"job_id": held.job.job_id})
        finally:
            self._settling_id = None

    async def _run(self, held: HeldJob) -> Succeeded | Failed | None:
        """Return how the job ended; None if it is not this worker's any more."""
        try:
            request = JobRequest.model_validate(dict(held.job.payload))
        except ValidationError as exc:
            return Failed(_invalid_job(exc))
        if held.starts > MAX_STARTS:
            return Failed(_gave_up(held))
        attempt = _Attempt(self._client, held.job, request, self._runner, self._cancel)
        return await attempt.run(self._options)

    async def _store(self, job: ClaimedJob, end: Succeeded | Failed) -> str:
        """Put the final report into the outbox, and only then forget the job."""
        report = self._client.final_report(
            job,
            end,
            config_label=self._options.config_label,
            batch_size=self._options.batch_size,
        )
        name = await self._outbox.put(report)
        self._settling_id = job.job_id
        await self._forget()
        return name

    async def _forget(self) -> None:
        await self._journal.clear()
        self._held = None


class _Attempt:
    """The run of one claimed job, its progress reports, and what the orchestrator says to them."""

    def __init__(
        self,
        client: WorkerClient,
        job: ClaimedJob,
        request: JobRequest,
        runner: Runner,
        cancel: Cancel,
    ) -> None:
        self._client = client
        self._job = job
        self._request = request
        self._runner = runner
        self._cancel = cancel
        self._gone = asyncio.Event()

    async def run(self, options: WorkerOptions) -> Succeeded | Failed | None:
        """Run the job to its end; None if it is not this worker's any more."""
        reporter = ProgressReporter(
            self._client,
            self._job,
            on_gone=self._set_gone,
            interval_s=options.progress_interval_s,
            repeat_s=options.progress_repeat_s,
            config_label=options.config_label,
            batch_size=options.batch_size,
        )
        reporter.start()
        running = asyncio.create_task(self._run_job(reporter), name="claimed job")
        try:
            await self._until_done_or_gone(running, options.cancel_wait_s)
        finally:
            await _end(running, options.cancel_wait_s)
            await reporter.close()
        if self._gone.is_set():
            return None
        return _final_state(running, reporter.fraction)

    async def _run_job(self, reporter: ProgressReporter) -> Outcome:
        return await self._runner(self._request, reporter.note)

    async def _set_gone(self) -> None:
        self._gone.set()

    async def _until_done_or_gone(
        self, running: asyncio.Task[Outcome], cancel_wait_s: float
    ) -> None:
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if running.done():
            return
        try:
            async with asyncio.timeout(cancel_wait_s):
                await self._cancel(self._request.musetalk_job_id)
                await asyncio.wait({running})
        except Exception:
            # Another part's failure to cancel; the runner's own cancellation follows.
            logger.exception("job not cancelled in time", extra={"job_id": self._job.job_id})


def _final_state(running: asyncio.Task[Outcome], fraction: float) -> Succeeded | Failed:
    """Return what to report of a finished runner. An exception of it ends here."""
    if running.cancelled():
        return Failed("The job was interrupted before it was done. Send it again.", fraction)
    exc = running.exception()
    if isinstance(exc, PipelineError):
        return Failed(_sendable(exc.message), fraction)
    if exc is not None:
        logger.error("job crashed", exc_info=exc)
        reason = f"The worker failed unexpectedly ({type(exc).__name__}). Send the job again."
        return Failed(reason, fraction)
    outcome = running.result()
    if isinstance(outcome, Failure):
        return Failed(_sendable(outcome.error_message), fraction)
    return _success(outcome, fraction)


def _success(outcome: Success, fraction: float) -> Succeeded | Failed:
    """Return a success only if it has all that makes one (known fault 2)."""
    if not outcome.output_url:
        return Failed("The job ended without an output address. Send it again.", fraction)
    if not outcome.metrics:
        return Failed("The job ended without metrics. Send it again.", fraction)
    return Succeeded(outcome.output_url, outcome.metrics)


def _invalid_job(exc: ValidationError) -> str:
    """Return which fields are wrong, without their values: addresses may be signed."""
    errors = exc.errors(include_input=False, include_url=False, include_context=False)
    facts = (f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
    return _sendable("The job is invalid: " + "; ".join(facts))


def _gave_up(held: HeldJob) -> str:
    return (
        f"The worker stopped {held.starts - 1} times while it worked on this job, and gave it up."
    )


def _sendable(text: str) -> str:
    """Return text that fits a report: bounded, and encodable whatever it was made from."""
    return text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()


async def _end(running: asyncio.Task[Outcome], wait_s: float) -> None:
    """Cancel a runner that is not done, and give it time to clean up."""
    if running.done():
        return
    running.cancel()
    await asyncio.wait({running}, timeout=wait_s)


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` even if the caller is cancelled meanwhile; the cancellation travels on after."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            logger.error("failed while shutting down", exc_info=task.exception())
        raise
