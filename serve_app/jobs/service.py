"""Jobs at one ingress, from submission to end, without HTTP."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from musetalk_pipeline.options import JobOptions
from orchestrator.store.delivery_values import Delivery
from orchestrator.store.errors import JobConflict, StoreUnavailable
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Outcome, invalid_request, state_unavailable
from serve_app.contract.requests import JobRequest, PreviewRequest
from serve_app.estimates.estimator import Estimator
from serve_app.graph.driver import JobDriver
from serve_app.graph.transfers import Assignment, PreviewPicture
from serve_app.jobs.attempt import BEAT_S, RunningAttempt
from serve_app.jobs.claims import ClaimCounts
from serve_app.jobs.clients import Changes, KeepAlive
from serve_app.jobs.estimates import JobEstimates
from serve_app.jobs.housekeeping import Housekeeping, SweepTiming
from serve_app.jobs.job import (
    Followed,
    Job,
    Origin,
    Page,
    ProgressCallback,
    SubmissionOptions,
    WorkerStopping,
)
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads, StateTiming
from serve_app.jobs.unavailable import UnavailableLog

logger = logging.getLogger(__name__)

# Runs an attempt and reports it: calls the second argument with the receiver of its progress.
ReportedRunner = Callable[[Job, Callable[[ProgressCallback], Awaitable[Outcome]]], Awaitable[None]]

FOLLOW_POLL_S = 1.0  # between two reads of a followed job that nothing here has changed


@dataclass(frozen=True, slots=True)
class JobTiming:
    """Seconds between two beats of an attempt and between two polls of an idle queue, and the waits
    of the registry.
    """

    beat_s: float = BEAT_S
    idle_poll_s: float = 1.0
    sweeps: SweepTiming = field(default_factory=SweepTiming)
    state: StateTiming = field(default_factory=StateTiming)


DEFAULT_TIMING = JobTiming()


class JobService:
    """Runs the jobs of the registry.

    Args:
        has_output: whether the output of a job still exists. It is called before an old success is
            returned again. None: it always exists.
        estimator: learns from the jobs that succeed here.
    """

    def __init__(
        self,
        registry: JobRegistry,
        driver: JobDriver,
        queue: QueueSettings,
        defaults: JobOptions,
        has_output: Callable[[Job], Awaitable[bool]] | None = None,
        *,
        timing: JobTiming = DEFAULT_TIMING,
        estimator: Estimator | None = None,
    ) -> None:
        self.registry = registry
        self.threads = StateThreads(registry.file, registry.timing)
        self._driver = driver
        self._queue = queue
        self._defaults = defaults
        self._timing = timing
        # Turns the location of a stored output into a link, for reports to an orchestrator.
        self.publish: Callable[[Outcome], Outcome] = lambda outcome: outcome
        # Called when there may be a job to take.
        self.on_work: Callable[[], None] = lambda: None
        # Called when a job may have ended, so that its webhooks can be sent at once.
        self.on_end: Callable[[], None] = lambda: None
        self._has_output = has_output
        self._active: set[str] = set()  # jobs with an attempt in this process
        self._log_unavailable = UnavailableLog("the job registry cannot be used now")
        self._changes = Changes()
        self._keep_alive = KeepAlive(registry, self.threads, self._log_unavailable)
        self._housekeeping = Housekeeping(registry, self.threads, queue, timing.sweeps)
        self._claims = ClaimCounts()
        estimator = estimator or Estimator()
        self.estimates = JobEstimates(estimator, driver, defaults, registry, self.threads)
        self._may_have_queued = True
        self._had_none_at = float("-inf")

    @property
    def active_jobs(self) -> int:
        """How many jobs run here."""
        return len(self._active)

    # Submitting and reading ------------------------------------------------------------------

    async def submit(
        self, request: JobRequest, origin: Origin, submission: SubmissionOptions | None = None
    ) -> Job:
        """Queue a job or join the same one.

        Raises:
            JobConflict, QueueFull, TooManyJoined, StoreUnavailable: see the registry.
        """
        gone = await self.gone(request, submission)
        job, is_new = await self.threads.write(
            self.registry.submit,
            request,
            origin,
            self._queue.max_queued_jobs,
            submission,
            gone=gone,
        )
        if is_new:
            logger.info("job entered", extra={"job_id": job.id, "origin": str(origin)})
        self.announce(job.id)
        return job

    async def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown."""
        return await self.threads.read(self.registry.get, job_id)

    async def unfinished(self) -> int:
        """Return how many jobs wait or run, those of other processes too."""
        return await self.threads.read(self.registry.unfinished)

    async def page(self, status: str | None, limit: int, before: tuple[float, str] | None) -> Page:
        """Return a page of jobs, newest first."""
        return await self.threads.read(self.registry.page, status, limit, before)

    async def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """Cancel a job; see the registry."""
        cancelled = await self.threads.write(self.registry.cancel, job_id)
        self.announce(job_id)
        return cancelled

    async def retry(self, job_id: str) -> Job:
        """Queue a job again that has ended without a result; see the registry."""
        job = await self.threads.write(self.registry.retry, job_id)
        self.announce(job_id)
        return job

    async def deliveries(self, job_id: str) -> tuple[Delivery, ...]:
        """Return the deliveries of a job's webhooks, the first one first."""
        return await self.threads.read(self.registry.deliveries, job_id)

    async def deliver_again(self, job_id: str, delivery_id: str) -> Delivery:
        """Queue the delivery of a webhook again.

        Raises:
            DeliveryNotFound: the job has no such delivery.
        """
        delivery = await self.threads.write(self.registry.deliver_again, job_id, delivery_id)
        self.on_end()
        return delivery

    async def wait(self, job_id: str) -> Job:
        """Wait for a job's end, and keep the job alive meanwhile.

        Raises:
            WorkerStopping: `leave_queue` was called, and the job is in the queue.
        """
        try:
            with self._keep_alive.waiting(job_id), self._changes.following(job_id) as change:
                while True:
                    change.expect()
                    job = await self._read(job_id)
                    if job is not None and job.is_terminal:
                        return job
                    if job is not None and self._changes.are_over(job):
                        raise WorkerStopping(job_id)
                    await change.wait(FOLLOW_POLL_S)
        except asyncio.CancelledError:
            await self._keep_alive.leave(job_id)
            raise

    async def follow(self, job_id: str, number: int) -> AsyncGenerator[Followed | None, None]:
        """Yield a job's state and its new changes of phase whenever there may be some.

        Starts after event `number`. Yields None if the registry cannot be read,
        and tries again. Ends when the id is unknown, and as `wait` does.
        """
        with self._changes.following(job_id) as change:
            while True:
                change.expect()
                try:
                    seen = await self.threads.read(self.registry.follow, job_id, number)
                except StoreUnavailable as exc:
                    self._log_unavailable(exc)
                    yield None
                else:
                    if seen is None:
                        return
                    yield seen
                    if seen.job.is_terminal or self._changes.are_over(seen.job):
                        return
                    if seen.events:
                        number = seen.events[-1].number
                await change.wait(FOLLOW_POLL_S)

    def leave_queue(self) -> None:
        """End the waits for jobs that are in the queue, as no job is started here any more.

        A replica that stops waits for its open requests, and the next one for the replica.
        """
        self._changes.leave_queue()

    # Running ---------------------------------------------------------------------------------

    async def run_next(self, reported_runner: ReportedRunner | None = None) -> Job | None:
        """Run the next queued job to its end; None if there is none.

        `reported_runner` runs the attempts at jobs of `POST /generate`.
        """
        try:
            await self._sweep()
            job = await self._take_next()
        except StoreUnavailable as exc:
            self._log_unavailable(exc)
            return None
        if job is None:
            return None
        if reported_runner is not None and job.origin is Origin.SYNC:
            await reported_runner(job, partial(self._run, job))
        else:
            await self._run(job, lambda progress: None)
        return job

    async def preview(self, request: PreviewRequest) -> PreviewPicture:
        """Make one frame of the result of `request`.

        Raises:
            PipelineError: the request cannot be done.
        """
        options = request.options(self._defaults)
        attempt_id = uuid.uuid4().hex
        return await self._driver.preview(
            Assignment(attempt_id, None, request.musetalk_job_id, 1, request, options),
            has_boxes=request.boxes,
        )

    async def run_claimed(
        self,
        request: JobRequest,
        on_progress: ProgressCallback,
        submission: SubmissionOptions | None = None,
    ) -> Outcome:
        """Run a job that the orchestrator handed out, or join it if it is here already."""
        output = None if submission is None else submission.output
        with self._claims.running(request.musetalk_job_id, output):
            return self.publish(await self._run_claimed(request, on_progress, submission))

    async def revoke_claim(self, job_id: str) -> None:
        """Cancel a job whose claim the orchestrator has revoked, unless a later claim runs here.

        Raises:
            StoreUnavailable: the job cannot be cancelled now.
        """
        if not self._claims.revoke(job_id):
            logger.info("a later claim of the job goes on", extra={"job_id": job_id})
            return
        job = await self.get(job_id)
        if job is not None and job.origin is Origin.CLAIMED:
            await self.cancel(job_id)

    async def _run_claimed(
        self,
        request: JobRequest,
        on_progress: ProgressCallback,
        submission: SubmissionOptions | None,
    ) -> Outcome:
        try:
            job = await self.submit(request, Origin.CLAIMED, submission)
        except JobConflict:
            return invalid_request("This job id belongs to a job with different content here.")
        except StoreUnavailable as exc:
            self._log_unavailable(exc)
            return state_unavailable()
        return job.outcome or await self._run_or_follow(job, on_progress)

    async def _run_or_follow(self, job: Job, on_progress: ProgressCallback) -> Outcome:
        """Run a claimed job if it can be taken, or follow it until another attempt ends it."""
        with self._changes.following(job.id) as change:
            number = 0
            while True:
                change.expect()
                try:
                    taken = await self._take(only=job.id)
                    if taken is not None:
                        return await self._run(taken, on_progress)
                    seen = await self.threads.read(self.registry.follow, job.id, number)
                    await self._sweep()
                except StoreUnavailable as exc:
                    self._log_unavailable(exc)
                else:
                    if seen is None:
                        raise KeyError(job.id)
                    job = seen.job
                    for event in seen.events:
                        number = event.number
                        on_progress(event.progress)
                    on_progress(job.progress)
                    if job.outcome is not None:
                        return job.outcome
                await change.wait(FOLLOW_POLL_S)

    async def _run(self, job: Job, on_progress: ProgressCallback) -> Outcome:
        """Drive one attempt to its outcome and store it."""
        assert job.attempt_id is not None
        assignment = Assignment(
            job.attempt_id,
            job.lost_attempt_id,
            job.id,
            job.attempt,
            job.request,
            job.request.options(self._defaults),
            job.queue_job_id,
            job.origin,
            partial(self._claims.output, job.id),
            job.number,
        )
        attempt = RunningAttempt(
            job,
            self.registry,
            self.threads,
            self._queue.lease_s,
            on_progress=on_progress,
            has_client=lambda: self._keep_alive.has_client(job.id),
            on_stored=lambda: self._changes.announce(job.id),
            beat_s=self._timing.beat_s,
        )
        self._active.add(job.id)
        try:
            await self.estimates.read_once()
            outcome = await attempt.run(self._driver.run(assignment, attempt.update))
            self.estimates.learn(outcome)
            return outcome
        finally:
            self._active.discard(job.id)
            self.announce(job.id)  # it may be in the queue again

    async def _take_next(self) -> Job | None:
        """Start the next job. All slots are woken at a change. An empty queue is read again only if
        something changed here, and now and then, as other processes add jobs too.
        """
        now = time.monotonic()
        if not self._may_have_queued and now - self._had_none_at < self._timing.idle_poll_s:
            return None
        self._may_have_queued = False
        try:
            job = await self._take()
        except BaseException:
            self._may_have_queued = True
            raise
        if job is None:
            self._had_none_at = now
        else:
            self._may_have_queued = True
        return job

    def announce(self, *job_ids: str) -> None:
        """Wake the followers of changed jobs, and the slots, which may find a queued job now."""
        self._changes.announce(*job_ids)
        if job_ids:
            self._may_have_queued = True
            self.on_work()
            self.on_end()

    async def _take(self, only: str | None = None) -> Job | None:
        """Start a job. If this is cancelled half-way the job is put back, as it would otherwise
        have to wait until its lease runs out.
        """
        taking = asyncio.create_task(
            self.threads.write(
                self.registry.take,
                self._queue.lease_s,
                self._queue.max_attempts,
                only,
                tuple(self._active),
            )
        )
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.wait({taking})
            taken = None if taking.cancelled() or taking.exception() else taking.result()
            if taken is not None:
                await self.threads.write(self.registry.requeue, taken)
            raise

    async def _sweep(self) -> None:
        self.announce(*await self._housekeeping.sweep(self._active, self._keep_alive.job_ids))
        await self._housekeeping.forget()

    async def gone(self, request: JobRequest, submission: SubmissionOptions | None) -> Job | None:
        """Return the job of an earlier success whose output no longer exists."""
        if self._has_output is None:
            return None
        key = None if submission is None else submission.idempotency_key
        job = await self.threads.read(self.registry.find, request.musetalk_job_id, key)
        if job is None or job.status != "succeeded":
            return None
        # A new attempt has addresses of its own, where the output of an earlier one is not.
        is_elsewhere = submission is not None and submission.output is not None
        if not is_elsewhere and await self._has_output(job):
            return None
        logger.info("output is gone, the job runs again", extra={"job_id": job.id})
        return job

    async def _read(self, job_id: str) -> Job | None:
        """Return a job, None if the registry cannot be read now.

        Raises:
            KeyError: the job has been forgotten.
        """
        try:
            job = await self.get(job_id)
        except StoreUnavailable as exc:
            self._log_unavailable(exc)
            return None
        if job is None:
            raise KeyError(job_id)
        return job
