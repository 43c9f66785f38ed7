"""One attempt at a job in this process: it is driven, its lease is kept, its end is stored.

    drive ──progress──► note ──► beat, once a second and with every phase and step ─► registry
      │                            └─ the verdict may end the drive
      └──► outcome ─► finish, again and again while the registry cannot be written

A registry that fails never leaves a drive running alone: a fault of the file (a full disk, another
process's lock) is said and tried again, anything else ends the drive.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from musetalk_pipeline.errors import PipelineError, StageFailed
from serve_app.contract.outcomes import Outcome, Phase, Progress, Success, failure_of
from serve_app.graph.transfers import Finished
from serve_app.jobs.job import CANCELLED, Job, Verdict
from serve_app.jobs.job_log import log_end
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads, StateUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_S = 1.0  # how soon a cancelled job, or one that nobody waits for, is noticed
STEP = 0.05  # of the fraction; such a step is stored at once
END_S = 30.0  # how long a cancelled drive may clean up
STORE_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # between tries at storing an end; the last one repeats
SAY_AGAIN_S = 30.0  # a fault that lasts is said that often


class LivingAttempt:
    """Runs `drive` to its end and stores what it came to.

    Args:
        report: is told every progress at once, in the event loop's thread.
        is_wanted: whether a client waits for the job in this process.
        on_stored: called after every change of the job in the registry.
    """

    def __init__(
        self,
        job: Job,
        registry: JobRegistry,
        threads: StateThreads,
        lease_s: float,
        *,
        report: Callable[[Progress], None],
        is_wanted: Callable[[], bool],
        on_stored: Callable[[], None],
    ) -> None:
        self._job = job
        self._registry = registry
        self._threads = threads
        self._lease_s = lease_s
        self._report = report
        self._is_wanted = is_wanted
        self._on_stored = on_stored
        self._latest = Progress(Phase.QUEUED, 0.0)
        self._stored = self._latest
        self._phases: list[Progress] = []  # changes of phase that are not stored yet
        self._news = asyncio.Event()
        self._said_at = float("-inf")

    def note(self, progress: Progress) -> None:
        """Take the drive's progress. Every change of phase is stored, in order."""
        if progress.phase is not self._latest.phase:
            self._phases.append(progress)
            self._news.set()
        elif progress.fraction >= self._stored.fraction + STEP:
            self._news.set()
        self._latest = progress
        self._report(progress)

    async def run(self, drive: Coroutine[Any, Any, Finished]) -> Outcome:
        """Return the outcome; it is stored by then, unless the attempt is no longer the job's.

        Cancelled (the replica is being stopped), this puts the job back into the queue.
        """
        driving = asyncio.create_task(drive)
        try:
            verdict = await self._watch(driving)
        except asyncio.CancelledError:
            await _end(driving)
            await self._put_back()
            raise
        except BaseException:
            # Nobody expected this of the registry. The lease runs out and the start has counted.
            await _end(driving)
            raise
        outcome, last = outcome_of(driving, verdict, self._latest)
        await self._settle(verdict, outcome, last)
        return outcome

    async def _watch(self, driving: "asyncio.Task[Finished]") -> Verdict:
        """Keep the lease until the drive ends; end it when the job is cancelled or taken over.

        Once the upload has begun a job is not cancelled any more, so that no output is ever stored
        for a job that ends as cancelled.
        """
        while True:
            await self._news_or_beat(driving)
            if driving.done():
                return Verdict.GO_ON
            verdict = await self._beat()
            if verdict is Verdict.CANCELLED and self._latest.phase is Phase.UPLOADING:
                continue  # an upload cannot be taken back: a job that has got so far is done
            if verdict is not Verdict.GO_ON:
                await _end(driving)
                return verdict

    async def _news_or_beat(self, driving: "asyncio.Task[Finished]") -> None:
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({driving, news}, timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    async def _beat(self) -> Verdict:
        self._news.clear()
        self._stored, phases = self._latest, tuple(self._phases)
        try:
            verdict = await self._threads.write(
                self._registry.beat,
                self._job,
                self._lease_s,
                self._stored,
                phases,
                is_wanted=self._is_wanted(),
            )
        except StateUnavailable as exc:
            self._say(exc)  # the job goes on, and so do the beats
            return Verdict.GO_ON
        del self._phases[: len(phases)]
        self._on_stored()
        return verdict

    async def _settle(self, verdict: Verdict, outcome: Outcome, last: Progress) -> None:
        """Store the end, or queue the job again if somebody wants it again."""
        job = self._job
        if verdict is Verdict.CANCELLED and await self._until_stored(
            lambda: self._registry.requeue(job, if_wanted=True)
        ):
            logger.info("job is wanted again", extra={"job_id": job.id})
            return
        if await self._until_stored(
            lambda: self._registry.finish(job, outcome, last, tuple(self._phases))
        ):
            log_end(job, outcome, last)
        else:
            logger.warning("late outcome dropped", extra={"job_id": job.id})

    async def _until_stored(self, write: Callable[[], T]) -> T:
        """Write, and again after each pause while the registry cannot be written."""
        for turn in range(1 << 62):
            try:
                done = await asyncio.shield(self._threads.write(write))
            except StateUnavailable as exc:
                self._say(exc)
                await asyncio.sleep(STORE_PAUSES_S[min(turn, len(STORE_PAUSES_S) - 1)])
            else:
                self._on_stored()
                return done
        raise AssertionError("unreachable: the loop has no end")

    async def _put_back(self) -> None:
        """Queue the job again; if that cannot be written, its lease runs out instead."""
        try:
            await self._threads.write(self._registry.requeue, self._job)
        except StateUnavailable as exc:
            self._say(exc)

    def _say(self, exc: StateUnavailable) -> None:
        if time.monotonic() - self._said_at > SAY_AGAIN_S:
            self._said_at = time.monotonic()
            logger.error(
                "the job registry cannot be written, trying again",
                extra={"job_id": self._job.id, "error": str(exc)},
            )


async def _end(driving: "asyncio.Task[Finished]") -> None:
    driving.cancel()
    await asyncio.wait({driving}, timeout=END_S)


def outcome_of(
    driving: "asyncio.Task[Finished]", verdict: Verdict, latest: Progress
) -> tuple[Outcome, Progress]:
    """Return what an ended attempt came to, and its last progress."""
    seconds = latest.stage_seconds
    failed = Progress(
        Phase.FAILED, latest.fraction, latest.frames_done, latest.frames_total, seconds
    )
    if verdict is not Verdict.GO_ON:
        return CANCELLED, failed
    if driving.cancelled():
        # By nobody here. A caller who was told that the job is cancelled would not try again.
        cut_off = StageFailed("The job was interrupted before it was done.")
        return failure_of(cut_off, seconds), failed
    error = driving.exception()
    if isinstance(error, PipelineError):
        return failure_of(error, seconds), failed
    if error is not None:
        logger.error("driver crashed", exc_info=error)
        crash = StageFailed(f"The driver crashed ({type(error).__name__}).")
        crash.__cause__ = error
        return failure_of(crash, seconds), failed
    finished = driving.result()
    total = latest.frames_total
    done = Progress(Phase.COMPLETED, 1.0, total, total, finished.metrics["stage_times"])
    return Success(finished.output_url, finished.metrics, finished.warnings), done
