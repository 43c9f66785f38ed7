"""The life of jobs at one ingress: entering, waiting, running, ending. Knows nothing of HTTP."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable

from musetalk_pipeline.errors import PipelineError, StageFailed
from musetalk_pipeline.options import JobOptions
from serve_app.answers import failure_of, invalid_request
from serve_app.driver import JobDriver
from serve_app.jobs import CANCELLED, Job, JobConflict, JobRegistry, Origin, Ticket, Verdict
from serve_app.metrics import JOBS_ENDED
from serve_app.schemas import JobRequest, Outcome, Phase, Progress, Success
from serve_app.settings import QueueSettings
from serve_app.transfers import Assignment, Finished, PreviewPicture

logger = logging.getLogger(__name__)

BEAT_S = 1.0  # how soon a cancelled job, or one that nobody waits for, is noticed
LOOK_S = 0.1  # how often a waiting caller looks at its job; a look is one indexed read
WISH_S = 0.5  # how often a waiting caller says that it still waits; a wish is a write
LAST_WISH_S = 1.5  # a client that left: long enough for another waiting one to renew its wish
SWEEP_S = 1.0


class JobService:
    """Runs what the registry holds."""

    def __init__(
        self,
        registry: JobRegistry,
        driver: JobDriver,
        queue: QueueSettings,
        defaults: JobOptions,
    ) -> None:
        self.registry = registry
        self._driver = driver
        self._queue = queue
        self._defaults = defaults
        self.active_jobs = 0
        # Makes a link of a stored output's location, for outcomes that leave this worker unasked.
        self.publish: Callable[[Outcome], Outcome] = lambda outcome: outcome
        self._swept_at = float("-inf")
        # By job id: slots that the orchestrator gave the job to, and those that it took it from.
        self._claims: Counter[str] = Counter()
        self._void_claims: Counter[str] = Counter()

    def submit(self, request: JobRequest, origin: Origin, ticket: Ticket | None = None) -> Job:
        """Enter a job or join the same one.

        Raises:
            JobConflict, QueueFull: see the registry.
        """
        job, is_new = self.registry.submit(request, origin, self._queue.max_queued_jobs, ticket)
        if is_new:
            logger.info("job entered", extra={"job_id": job.id, "origin": str(origin)})
        return job

    async def wait(self, job_id: str) -> Job:
        """Wait for a job's end, and keep it wanted while somebody does."""
        wished_at = float("-inf")
        try:
            while True:
                job = self.registry.get(job_id)
                if job is None:
                    raise KeyError(job_id)
                if job.is_terminal:
                    return job
                if time.monotonic() - wished_at > WISH_S:
                    self.registry.want(job_id)
                    wished_at = time.monotonic()
                await asyncio.sleep(LOOK_S)
        except asyncio.CancelledError:
            self.registry.want(job_id, LAST_WISH_S)
            raise

    async def work(self) -> Job | None:
        """Run the next job that waits, to its end; None if there is none."""
        self._sweep()
        job = self.registry.take(self._queue.lease_s, self._queue.max_attempts)
        if job is None:
            return None
        await self._run(job, lambda progress: None)
        self.registry.forget(self._queue.keep_finished)
        return self.registry.get(job.id)

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

    async def run_claimed(self, request: JobRequest, report: Callable[[Progress], None]) -> Outcome:
        """Run a job that the orchestrator handed out, or join it if it is here already."""
        job_id = request.musetalk_job_id
        self._claims[job_id] += 1
        try:
            return self.publish(await self._run_claimed(request, report))
        finally:
            self._claims[job_id] -= 1
            if not self._claims[job_id]:
                del self._claims[job_id], self._void_claims[job_id]

    def void_claim(self, job_id: str) -> None:
        """End a job that the orchestrator took from a slot, unless another slot here has it now."""
        self._void_claims[job_id] += 1
        job = self.registry.get(job_id)
        if self._void_claims[job_id] < self._claims[job_id]:
            logger.info("job moved to another slot", extra={"job_id": job_id})
        elif job is not None and job.origin is Origin.CLAIMED:
            self.registry.cancel(job_id)

    async def _run_claimed(
        self, request: JobRequest, report: Callable[[Progress], None]
    ) -> Outcome:
        try:
            job = self.submit(request, Origin.CLAIMED)
        except JobConflict:
            return invalid_request("This job id belongs to a job with different content here.")
        while not job.is_terminal:
            mine = self.registry.take(self._queue.lease_s, self._queue.max_attempts, only=job.id)
            if mine is not None:
                return await self._run(mine, report)
            await asyncio.sleep(BEAT_S)
            found = self.registry.get(job.id)
            if found is None:
                raise KeyError(job.id)
            job = found
            report(job.progress)
            self._sweep()
        assert job.outcome is not None
        return job.outcome

    def _sweep(self) -> None:
        """End what can never be taken, now and then: every slot asks several times a second."""
        if time.monotonic() - self._swept_at > SWEEP_S:
            self.registry.sweep(self._queue.max_attempts)
            self._swept_at = time.monotonic()

    async def _run(self, job: Job, report: Callable[[Progress], None]) -> Outcome:
        """Drive one attempt to its outcome and store it."""
        latest = Progress(Phase.DOWNLOADING, 0.0)

        def on_progress(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            report(progress)

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
        self.active_jobs += 1
        drive = asyncio.create_task(self._driver.run(work, on_progress))
        try:
            verdict = await self._watch(job, drive, lambda: latest)
        except asyncio.CancelledError:
            # This replica is being stopped: another one starts the job again.
            await _end(drive)
            self.registry.requeue(job)
            raise
        finally:
            self.active_jobs -= 1
        outcome, latest = _outcome(drive, verdict, latest)
        if verdict is Verdict.CANCELLED and self.registry.requeue(job, if_wanted=True):
            logger.info("job is wanted again", extra={"job_id": job.id})
        elif self.registry.finish(job, outcome, latest):
            log_end(job, outcome)
        else:
            logger.warning("late outcome dropped", extra={"job_id": job.id})
        return outcome

    async def _watch(
        self, job: Job, drive: "asyncio.Task[Finished]", progress: Callable[[], Progress]
    ) -> Verdict:
        """Keep the lease until `drive` ends; end it when the job is cancelled or taken over.

        Once the upload has begun a job is not cancelled any more, so that no output is ever stored
        for a job that ends as cancelled.
        """
        while True:
            done, _ = await asyncio.wait({drive}, timeout=BEAT_S)
            if done:
                return Verdict.GO_ON
            verdict = self.registry.beat(job, self._queue.lease_s, progress())
            if verdict is Verdict.CANCELLED and progress().phase is Phase.UPLOADING:
                continue  # an upload cannot be taken back: a job that has got so far is done
            if verdict is not Verdict.GO_ON:
                await _end(drive)
                return verdict


async def _end(drive: "asyncio.Task[Finished]") -> None:
    drive.cancel()
    await asyncio.wait({drive}, timeout=30.0)


def _outcome(
    drive: "asyncio.Task[Finished]", verdict: Verdict, latest: Progress
) -> tuple[Outcome, Progress]:
    """Return what an ended attempt came to, and its last progress."""
    seconds = latest.stage_seconds
    failed = Progress(
        Phase.FAILED, latest.fraction, latest.frames_done, latest.frames_total, seconds
    )
    if verdict is not Verdict.GO_ON or drive.cancelled():
        return CANCELLED, failed
    error = drive.exception()
    if isinstance(error, PipelineError):
        return failure_of(error, seconds), failed
    if error is not None:
        logger.error("driver crashed", exc_info=error)
        crash = StageFailed(f"The driver crashed ({type(error).__name__}).")
        crash.__cause__ = error
        return failure_of(crash, seconds), failed
    finished = drive.result()
    total = latest.frames_total
    done = Progress(Phase.COMPLETED, 1.0, total, total, finished.metrics["stage_times"])
    return Success(finished.output_url, finished.metrics, finished.warnings), done


def log_end(job: Job, outcome: Outcome) -> None:
    """Log a job's end, once."""
    extra = {"job_id": job.id, "attempt": job.attempt}
    if isinstance(outcome, Success):
        logger.info("job succeeded", extra=extra)
        JOBS_ENDED.inc(tags={"outcome": "succeeded"})
    else:
        JOBS_ENDED.inc(tags={"outcome": "cancelled" if outcome.cancelled else "failed"})
        logger.info("job failed", extra={**extra, "code": outcome.code, "stage": outcome.stage})
