"""The life of jobs at one ingress: entering, waiting, running, ending. Knows nothing of HTTP."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context
from functools import partial

from musetalk_pipeline.options import JobOptions
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Outcome, Progress, invalid_request, state_unavailable
from serve_app.contract.requests import JobRequest
from serve_app.graph.driver import JobDriver
from serve_app.graph.transfers import Assignment, PreviewPicture
from serve_app.jobs.attempt import LivingAttempt
from serve_app.jobs.job import Followed, Job, JobConflict, Origin, Page, Ticket
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads, StateUnavailable
from serve_app.jobs.waiting import Changes, Waiting

logger = logging.getLogger(__name__)

# Runs an attempt by calling the second argument with where its progress goes.
Tell = Callable[[Job, Callable[[Callable[[Progress], None]], Awaitable[Outcome]]], Awaitable[None]]

CLAIM_LOOK_S = 1.0  # how often a claimed job that runs elsewhere is looked at
LOOK_S = 1.0  # how often a follower looks, although nothing here changed its job
WISH_S = 0.5  # how often jobs that callers wait for are said to be wanted; a wish is a write
LAST_WISH_S = 1.5  # a client that left: long enough for another process to renew its wish
SWEEP_S = IDLE_S = 1.0
FORGET_S = 30.0  # how often ended jobs beyond the configured number are dropped
SAY_AGAIN_S = 30.0  # a fault that lasts is said that often


class JobService:
    """Runs what the registry holds.

    Args:
        has_output: whether the output of a job can still be found, asked before an old success is
            answered again. None: always.
    """

    def __init__(
        self,
        registry: JobRegistry,
        driver: JobDriver,
        queue: QueueSettings,
        defaults: JobOptions,
        has_output: Callable[[Job], Awaitable[bool]] | None = None,
    ) -> None:
        self.registry = registry
        self.threads = StateThreads(registry.file)
        self._driver = driver
        self._queue = queue
        self._defaults = defaults
        # Makes a link of a stored output's location, for outcomes that leave this worker unasked.
        self.publish: Callable[[Outcome], Outcome] = lambda outcome: outcome
        self._has_output = has_output
        self._living: set[str] = set()  # jobs with an attempt in this process
        self._changes = Changes()
        self._waiting = Waiting()
        self._wishing: asyncio.Task[None] | None = None
        self._may_have_work = True
        self._had_none_at = self._swept_at = self._said_at = float("-inf")
        self._forgot_at = float("-inf")
        # By job id: slots that the orchestrator gave the job to, and those that it took it from.
        self._claims: Counter[str] = Counter()
        self._void_claims: Counter[str] = Counter()

    @property
    def active_jobs(self) -> int:
        """How many jobs run here."""
        return len(self._living)

    # Entering and looking --------------------------------------------------------------------

    async def submit(
        self, request: JobRequest, origin: Origin, ticket: Ticket | None = None
    ) -> Job:
        """Enter a job or join the same one.

        Raises:
            JobConflict, QueueFull, TooManyJoined, StateUnavailable: see the registry.
        """
        gone = await self._gone(request, ticket)
        job, is_new = await self.threads.write(
            self.registry.submit, request, origin, self._queue.max_queued_jobs, ticket, gone=gone
        )
        if is_new:
            logger.info("job entered", extra={"job_id": job.id, "origin": str(origin)})
        self._changed(job.id)
        return job

    async def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown."""
        return await self.threads.read(self.registry.get, job_id)

    async def page(self, status: str | None, limit: int, before: tuple[float, str] | None) -> Page:
        """Return a page of jobs, newest first."""
        return await self.threads.read(self.registry.page, status, limit, before)

    async def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """Ask for a job's end; see the registry."""
        done = await self.threads.write(self.registry.cancel, job_id)
        self._changed(job_id)
        return done

    async def wait(self, job_id: str) -> Job:
        """Wait for a job's end, and keep it wanted while somebody does."""
        try:
            with self._waiting.waiting(job_id), self._changes.following(job_id) as change:
                self._keep_wishing()
                while True:
                    change.expect()
                    job = await self._look(job_id)
                    if job is not None and job.is_terminal:
                        return job
                    await change.wait(LOOK_S)
        except asyncio.CancelledError:
            if job_id not in self._waiting:
                await self._wish([job_id], LAST_WISH_S)
            raise

    async def follow(
        self, job_id: str, run: int, number: int
    ) -> AsyncGenerator[Followed | None, None]:
        """Yield a job's state and its new changes of phase whenever there may be some.

        Starts after the change `number` of that `run`; None says that nothing came for a while.
        Ends when the id is unknown. A registry that cannot be read is waited for.
        """
        with self._changes.following(job_id) as change:
            while True:
                change.expect()
                try:
                    seen = await self.threads.read(self.registry.follow, job_id, run, number)
                except StateUnavailable as exc:
                    self._say(exc)
                    yield None
                else:
                    if seen is None:
                        return
                    yield seen
                    if seen.job.is_terminal:
                        return
                    run = seen.job.run
                    if seen.events:
                        number = seen.events[-1].number
                await change.wait(LOOK_S)

    # Running ---------------------------------------------------------------------------------

    async def work(self, tell: Tell | None = None) -> Job | None:
        """Run the next job that waits, to its end; None if there is none.

        `tell`: runs an attempt at a job that was pushed here, and tells others of it.
        """
        try:
            await self._sweep()
            job = await self._next()
        except StateUnavailable as exc:
            self._say(exc)
            return None
        if job is None:
            return None
        if tell is not None and job.origin is Origin.SYNC:
            await tell(job, partial(self._run, job))
        else:
            await self._run(job, lambda progress: None)
        return job

    async def preview(self, request: JobRequest) -> PreviewPicture:
        """Make one frame of what `request` would give.

        Raises:
            PipelineError: the request cannot be done.
        """
        options = request.options(self._defaults)
        attempt_id = uuid.uuid4().hex
        return await self._driver.preview(
            Assignment(attempt_id, None, request.musetalk_job_id, 1, request, options)
        )

    async def run_claimed(
        self,
        request: JobRequest,
        report: Callable[[Progress], None],
        ticket: Ticket | None = None,
    ) -> Outcome:
        """Run a job that the orchestrator handed out, or join it if it is here already."""
        job_id = request.musetalk_job_id
        self._claims[job_id] += 1
        try:
            return self.publish(await self._run_claimed(request, report, ticket))
        finally:
            self._claims[job_id] -= 1
            if not self._claims[job_id]:
                del self._claims[job_id], self._void_claims[job_id]

    async def void_claim(self, job_id: str) -> None:
        """End a job that the orchestrator took from a slot, unless another slot here has it now.

        Raises:
            StateUnavailable: it cannot be ended now.
        """
        self._void_claims[job_id] += 1
        if self._void_claims[job_id] < self._claims[job_id]:
            logger.info("job moved to another slot", extra={"job_id": job_id})
            return
        job = await self.get(job_id)
        if job is not None and job.origin is Origin.CLAIMED:
            await self.cancel(job_id)

    async def _run_claimed(
        self, request: JobRequest, report: Callable[[Progress], None], ticket: Ticket | None
    ) -> Outcome:
        try:
            job = await self.submit(request, Origin.CLAIMED, ticket)
        except JobConflict:
            return invalid_request("This job id belongs to a job with different content here.")
        except StateUnavailable as exc:
            self._say(exc)
            return state_unavailable()
        if job.outcome is not None:
            return job.outcome
        with self._changes.following(job.id) as change:
            number = 0
            while True:
                change.expect()
                try:
                    mine = await self._take(only=job.id)
                    if mine is not None:
                        return await self._run(mine, report)
                    seen = await self.threads.read(self.registry.follow, job.id, job.run, number)
                    await self._sweep()
                except StateUnavailable as exc:
                    self._say(exc)
                else:
                    if seen is None:
                        raise KeyError(job.id)
                    job = seen.job
                    for event in seen.events:
                        number = event.number
                        report(event.progress)
                    report(job.progress)
                    if job.outcome is not None:
                        return job.outcome
                await change.wait(CLAIM_LOOK_S)

    async def _run(self, job: Job, report: Callable[[Progress], None]) -> Outcome:
        """Drive one attempt to its outcome and store it."""
        assert job.attempt_id is not None
        work = Assignment(
            job.attempt_id,
            job.lost_attempt_id,
            job.id,
            job.attempt,
            job.request,
            job.request.options(self._defaults),
            job.queue_job_id,
        )
        attempt = LivingAttempt(
            job,
            self.registry,
            self.threads,
            self._queue.lease_s,
            report=report,
            is_wanted=lambda: job.id in self._waiting,
            on_stored=lambda: self._changed(job.id),
        )
        self._living.add(job.id)
        try:
            return await attempt.run(self._driver.run(work, attempt.note))
        finally:
            self._living.discard(job.id)

    async def _next(self) -> Job | None:
        """Start the next job. The slots ask many times a second; the registry is asked only if
        something changed here since it had nothing, or now and then, for what others leave to it.
        """
        now = time.monotonic()
        if not self._may_have_work and now - self._had_none_at < IDLE_S:
            return None
        self._may_have_work = False
        try:
            job = await self._take()
        except BaseException:
            self._may_have_work = True
            raise
        if job is None:
            self._had_none_at = now
        else:
            self._may_have_work = True
        return job

    def _changed(self, *job_ids: str) -> None:
        self._may_have_work = self._may_have_work or bool(job_ids)
        self._changes.say(*job_ids)

    async def _take(self, only: str | None = None) -> Job | None:
        """Start a job. Were this cancelled half-way, the job would wait for its lease to run out:
        it is put back instead.
        """
        taking = asyncio.create_task(
            self.threads.write(
                self.registry.take,
                self._queue.lease_s,
                self._queue.max_attempts,
                only,
                tuple(self._living),
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

    # Housekeeping ----------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """End what can never be taken, and drop what ended long ago, now and then: every slot asks
        several times a second, also where all jobs are claimed or are cancelled before they run.
        """
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            ended = await self.threads.write(
                self.registry.sweep,
                self._queue.max_attempts,
                tuple(self._living),
                self._waiting.job_ids,
            )
            self._changed(*ended)
        if time.monotonic() - self._forgot_at > FORGET_S:
            self._forgot_at = time.monotonic()
            await self.threads.write(self.registry.forget, self._queue.keep_finished)

    async def _gone(self, request: JobRequest, ticket: Ticket | None) -> Job | None:
        """Return the job of an earlier success whose output cannot be found any more."""
        if self._has_output is None:
            return None
        key = None if ticket is None else ticket.idempotency_key
        job = await self.threads.read(self.registry.find, request.musetalk_job_id, key)
        if job is None or job.status != "succeeded" or await self._has_output(job):
            return None
        logger.info("output is gone, the job is done again", extra={"job_id": job.id})
        return job

    async def _look(self, job_id: str) -> Job | None:
        """Return a job, None if the registry cannot be read now.

        Raises:
            KeyError: the job has been forgotten.
        """
        try:
            job = await self.get(job_id)
        except StateUnavailable as exc:
            self._say(exc)
            return None
        if job is None:
            raise KeyError(job_id)
        return job

    def _keep_wishing(self) -> None:
        if self._wishing is None or self._wishing.done():
            # Outside the request that happens to be the first: it is no part of that one.
            wishing = self._wish_while_waited_for()
            self._wishing = asyncio.create_task(wishing, context=Context())

    async def _wish_while_waited_for(self) -> None:
        while job_ids := self._waiting.job_ids:
            await self._wish(job_ids)
            await asyncio.sleep(WISH_S)

    async def _wish(self, job_ids: list[str], *seconds: float) -> None:
        try:
            await self.threads.write(self.registry.want, job_ids, *seconds)
        except StateUnavailable as exc:
            self._say(exc)  # beats and sweeps know who waits here

    def _say(self, exc: StateUnavailable) -> None:
        if time.monotonic() - self._said_at > SAY_AGAIN_S:
            self._said_at = time.monotonic()
            logger.error("the job registry cannot be used now", extra={"error": str(exc)})
