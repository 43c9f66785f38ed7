"""One attempt at a job in this process, from its start until its end is stored.

    drive ──progress──► update ──► beat, every second and at every phase and step ─► registry
      │                              └─ the verdict may end the drive
      └──► outcome ─► finish, repeated while the registry cannot be written

A registry that fails never leaves a drive running without supervision. A fault of the file (a full
disk, another process's lock) is logged and the write repeated. Any other fault ends the drive.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from musetalk_pipeline.errors import PipelineError, StageFailed
from orchestrator.store.errors import StoreUnavailable
from serve_app.contract.outcomes import Outcome, Phase, Progress, Success, failure_of
from serve_app.graph.transfers import Finished
from serve_app.jobs.job import CANCELLED, Job, ProgressCallback, Verdict
from serve_app.jobs.job_log import log_end
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads
from serve_app.jobs.unavailable import UnavailableLog

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_S = 1.0  # how soon a cancelled job, or one without clients, is noticed
STEP = 0.05  # of the fraction; such a step is stored at once
CLEAN_UP_S = 30.0  # how long a cancelled drive may clean up
STORE_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # between tries at storing an end; the last one repeats


class RunningAttempt:
    """Runs `drive` to its end and stores its outcome.

    Args:
        on_progress: called with every progress at once, in the event loop's thread.
        has_client: whether a client of this process waits for the job.
        on_stored: called after every change of the job in the registry.
        beat_s: seconds between two beats.
    """

    def __init__(
        self,
        job: Job,
        registry: JobRegistry,
        threads: StateThreads,
        lease_s: float,
        *,
        on_progress: ProgressCallback,
        has_client: Callable[[], bool],
        on_stored: Callable[[], None],
        beat_s: float = BEAT_S,
    ) -> None:
        self._job = job
        self._registry = registry
        self._threads = threads
        self._lease_s = lease_s
        self._on_progress = on_progress
        self._has_client = has_client
        self._on_stored = on_stored
        self._beat_s = beat_s
        self._latest = Progress(Phase.QUEUED, 0.0)
        self._stored = self._latest
        self._phases: list[Progress] = []  # changes of phase that are not stored yet
        self._beat_due = asyncio.Event()
        self._log_unavailable = UnavailableLog("the job registry cannot be written, trying again")

    def update(self, progress: Progress) -> None:
        """Take the drive's progress. Every change of phase is stored, in order."""
        if progress.phase is not self._latest.phase:
            self._phases.append(progress)
            self._beat_due.set()
        elif progress.fraction >= self._stored.fraction + STEP:
            self._beat_due.set()
        self._latest = progress
        self._on_progress(progress)

    async def run(self, drive: Coroutine[Any, Any, Finished]) -> Outcome:
        """Return the outcome. It is stored by then, unless the attempt has lost the job.

        If this is cancelled, because the replica stops, the job goes back into the queue.
        """
        driving = asyncio.create_task(drive)
        try:
            verdict = await self._watch(driving)
        except asyncio.CancelledError:
            await _cancel(driving)
            await self._put_back()
            raise
        except BaseException:
            # An unexpected fault of the registry. The lease runs out, and the start has counted.
            await _cancel(driving)
            raise
        outcome, last = outcome_of(driving, verdict, self._latest)
        await self._store_end(verdict, outcome, last)
        return outcome

    async def _watch(self, driving: "asyncio.Task[Finished]") -> Verdict:
        """Renew the lease until the drive ends. End the drive if the job is cancelled or lost.

        Once the upload has begun a job can no longer be cancelled, so that no output is ever stored
        for a job that ends as cancelled.
        """
        while True:
            await self._until_beat_is_due(driving)
            if driving.done():
                return Verdict.GO_ON
            verdict = await self._beat()
            if verdict is Verdict.CANCELLED and self._latest.phase is Phase.UPLOADING:
                continue
            if verdict is not Verdict.GO_ON:
                await _cancel(driving)
                return verdict

    async def _until_beat_is_due(self, driving: "asyncio.Task[Finished]") -> None:
        due = asyncio.create_task(self._beat_due.wait())
        try:
            await asyncio.wait(
                {driving, due}, timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            due.cancel()

    async def _beat(self) -> Verdict:
        self._beat_due.clear()
        self._stored, phases = self._latest, tuple(self._phases)
        try:
            verdict = await self._threads.write(
                self._registry.beat,
                self._job,
                self._lease_s,
                self._stored,
                phases,
                has_client=self._has_client(),
            )
        except StoreUnavailable as exc:
            self._log_unavailable(exc, job_id=self._job.id)  # the job and its beats go on
            return Verdict.GO_ON
        del self._phases[: len(phases)]
        self._on_stored()
        return verdict

    async def _store_end(self, verdict: Verdict, outcome: Outcome, last: Progress) -> None:
        """Store the end, or queue the job again if a client has come back for it."""
        job = self._job
        if verdict is Verdict.CANCELLED and await self._until_stored(
            lambda: self._registry.requeue(job, if_client_is_back=True)
        ):
            logger.info("job is queued again for a client that came back", extra={"job_id": job.id})
            return
        if await self._until_stored(
            lambda: self._registry.finish(job, outcome, last, tuple(self._phases))
        ):
            log_end(job, outcome, last)
        else:
            logger.warning("late outcome dropped", extra={"job_id": job.id})

    async def _until_stored(self, write: Callable[[], T]) -> T:
        """Write, and repeat it after a pause while the registry cannot be written."""
        tries = 0
        while True:
            try:
                written = await asyncio.shield(self._threads.write(write))
            except StoreUnavailable as exc:
                self._log_unavailable(exc, job_id=self._job.id)
                await asyncio.sleep(STORE_PAUSES_S[min(tries, len(STORE_PAUSES_S) - 1)])
                tries += 1
            else:
                self._on_stored()
                return written

    async def _put_back(self) -> None:
        """Queue the job again. If that cannot be written, its lease runs out instead."""
        try:
            await self._threads.write(self._registry.requeue, self._job)
        except StoreUnavailable as exc:
            self._log_unavailable(exc, job_id=self._job.id)
        else:
            self._on_stored()


async def _cancel(driving: "asyncio.Task[Finished]") -> None:
    driving.cancel()
    await asyncio.wait({driving}, timeout=CLEAN_UP_S)


def outcome_of(
    driving: "asyncio.Task[Finished]", verdict: Verdict, latest: Progress
) -> tuple[Outcome, Progress]:
    """Return the outcome of an ended attempt, and its last progress."""
    seconds, receipt = latest.stage_seconds, latest.receipt
    failed = Progress(
        Phase.FAILED, latest.fraction, latest.frames_done, latest.frames_total, seconds
    )
    if verdict is not Verdict.GO_ON:
        return replace(CANCELLED, receipt=receipt), failed
    if driving.cancelled():
        # It was not cancelled here. A caller does not retry a job that is reported as cancelled.
        cut_off = StageFailed("The job was interrupted before it was done.")
        return failure_of(cut_off, seconds, receipt), failed
    error = driving.exception()
    if isinstance(error, PipelineError):
        return failure_of(error, seconds, receipt), failed
    if error is not None:
        logger.error("driver crashed", exc_info=error)
        crash = StageFailed(f"The driver crashed ({type(error).__name__}).")
        crash.__cause__ = error
        return failure_of(crash, seconds, receipt), failed
    finished = driving.result()
    total = latest.frames_total
    done = Progress(Phase.COMPLETED, 1.0, total, total, finished.metrics["stage_times"])
    return Success(finished.output_url, finished.metrics, finished.warnings), done
