"""A worker that polls an orchestrator: one identity, and up to `capacity` jobs at a time.

    beat_forever   a heartbeat at every interval, from its own thread, naming all jobs
    work_once      resume or claim ─► run ─► store the final report ─► wait for its acceptance
                                └─ progress, best effort; the answers to it may stop the job

`work_once` does one job, and may be called again while it does; one of the calls claims at a time.
It is called inside a request that the ingress replica has accepted: a draining replica accepts
none, so it claims nothing, and is waited for while a job runs. What ends in which way:

- The job ends: its report is on disk before it is sent, and sent until it is accepted.
- The orchestrator says that the job is gone: it is cancelled and nothing is reported.
- `work_once` is cancelled or the process dies: the claim stays in the journal, and whoever speaks
  for this identity next resumes it. If nobody does, silence returns the job to the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.client import Failed, HeartbeatAnswer, Succeeded, WorkerClient
from orchestrator.errors import OrchestratorError
from serve_app.contract.lenient import read_leniently
from serve_app.contract.outcomes import Outcome
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.heartbeat import Heartbeats, Pulse
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.reported_run import Note, ReportedRun, sendable
from serve_app.jobs.job import Ticket

logger = logging.getLogger(__name__)

T = TypeVar("T")

Runner = Callable[[JobRequest, Note, Ticket], Awaitable[Outcome]]
Cancel = Callable[[str], Awaitable[None]]

MAX_STARTS = 3
CANNOT_WORK = "No replica can take a job."
OUTBOX_FULL = "Too many final reports wait to be accepted."
DRAINING = "The orchestrator asked this worker to claim nothing more."


class Worker:
    """One worker identity: it beats, claims jobs while there is room, runs them and reports.

    Args:
        connect: makes a client; called once per event loop (the heartbeats have their own).
        outbox: the process runs its `deliver_forever`.
        runner: does a job and returns its outcome; its own deadlines end it, nothing here does.
        cancel: ends a running job, by its `musetalk_job_id`.
        can_work: whether a job could run now. Asked before every claim, and before a job that was
            left is resumed: one that cannot be stored would be reported as failed.
        batch_size: what reports say about it; asked at the start and the end of a job.
        sleep: waits between the tries of one claim.
        clock: seconds that never go back.
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
        batch_size: Callable[[], int | None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = connect()
        self._connect = connect
        self._outbox = outbox
        self._journal = journal
        self._runner = runner
        self._cancel = cancel
        self._can_work = can_work
        self._options = options or WorkerOptions()
        self._batch_size = batch_size
        self._sleep = sleep
        self._clock = clock
        # Tuples, replaced and never changed: the heartbeat thread reads them.
        self._held: tuple[HeldJob, ...] = ()
        self._settling: tuple[HeldJob, ...] = ()  # their reports are stored, not accepted yet
        self._at_work: set[str] = set()  # keys of held jobs that a call of `work_once` works on
        self._runs: dict[str, ReportedRun] = {}  # by the same keys
        self._is_claiming = False
        self._is_drained = False
        self._claim_again_at = float("-inf")
        self._trouble: str | None = None
        self._called_at = clock()

    @property
    def current_job_id(self) -> str | None:
        """The oldest job that this worker holds: running, being reported, or to be resumed."""
        jobs = self._jobs()
        return jobs[0].job.job_id if jobs else None

    async def beat_forever(self) -> None:
        """Send heartbeats until cancelled, the first at once, whatever else goes on."""
        loop = asyncio.get_running_loop()

        def heard(answer: HeartbeatAnswer) -> None:
            loop.call_soon_threadsafe(self._obey, answer)

        heartbeats = Heartbeats(
            self._connect, self._pulse, self._options.heartbeat_interval_s, heard=heard
        )
        heartbeats.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.to_thread(heartbeats.stop))

    async def work_once(self) -> bool:
        """Do one job from claim to report; False if there was none to do.

        A call while there is no room, while another call claims, or too soon after a claim that
        brought nothing, is answered False at once.
        """
        self._called_at = self._clock()
        if self._is_claiming or len(self._at_work) >= self._options.capacity:
            return False
        if self._called_at < self._claim_again_at:
            return False
        held = await self._next()
        if held is None:
            self._claim_again_at = self._clock() + self._options.claim_interval_s
            return False
        try:
            await self._work(held)
        finally:
            self._at_work.discard(held.key)
            self._claim_again_at = float("-inf")  # the next job may wait already
        return True

    async def aclose(self) -> None:
        """Close the connections and let another process speak for this identity."""
        await self._client.aclose()
        self._journal.release()

    # Heartbeats, in their thread -------------------------------------------------------------

    def _pulse(self) -> Pulse | None:
        """Return what the next heartbeat says. Runs in the heartbeat thread."""
        if not self._journal.acquire():
            return None
        jobs = self._jobs(self._journal.read())
        if jobs:
            names = tuple(held.job for held in jobs)
            return Pulse("busy", names[0].job_id, self._trouble, names)
        is_uncalled = self._clock() - self._called_at > self._options.uncalled_s
        if is_uncalled and self._journal.is_wanted():
            # A drained replica gets no calls any more. Its successor has the identity from here on;
            # should there be none after all, the next beat takes it back.
            self._journal.release()
            return None
        return Pulse("idle", None, self._trouble)

    def _jobs(self, stored: tuple[HeldJob, ...] = ()) -> tuple[HeldJob, ...]:
        """Return all jobs of this worker, the oldest first; `stored` are those in the journal,
        some of which an earlier process left and nobody here has taken up yet.
        """
        by_key = {held.key: held for held in stored + self._held + self._settling}
        return tuple(by_key[key] for key in sorted(by_key))

    def _obey(self, answer: HeartbeatAnswer) -> None:
        """Do what the answer to a heartbeat asks for. Runs in the event loop."""
        self._is_drained = answer.drain
        for held in self._held:
            run = self._runs.get(held.key)
            if run is not None and held.job.musetalk_job_id in answer.cancel:
                logger.info("job cancelled by heartbeat", extra={"job_id": held.job.job_id})
                run.stop()

    # Claims ----------------------------------------------------------------------------------

    async def _next(self) -> HeldJob | None:
        """Return a job to work on, marked as being at work: one that was left, or a claimed one."""
        if not self._journal.acquire():
            return None  # a draining predecessor still speaks for this identity
        # Nobody else looks for work meanwhile, so that a claimed job is not taken for a left one
        # before this call has it.
        self._is_claiming = True
        try:
            if not await self._can_work():
                self._trouble = CANNOT_WORK
                return None
            held = self._left() or await self._claim()
        finally:
            self._is_claiming = False
        if held is not None:
            self._at_work.add(held.key)
        return held

    def _left(self) -> HeldJob | None:
        """Return a job whose call was cancelled, or that an earlier process left unfinished."""
        for held in self._held:
            if held.key not in self._at_work:
                return held
        known = {held.key for held in self._held}
        for held in self._journal.read():
            if held.key not in known:
                self._held = (*self._held, held)
                return held
        return None

    async def _claim(self) -> HeldJob | None:
        """Ask for a job, again after each backoff while the orchestrator does not answer."""
        for pause_s in (*self._options.claim_backoff_s, None):
            self._called_at = self._clock()
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
        held = HeldJob(claim.job)
        self._held = (*self._held, held)
        return held

    async def _reason_not_to_claim(self) -> str | None:
        if self._is_drained:
            return DRAINING
        if not await self._can_work():
            return CANNOT_WORK
        if await asyncio.to_thread(lambda: self._outbox.is_full):
            return OUTBOX_FULL
        return None

    # One job ---------------------------------------------------------------------------------

    async def _work(self, held: HeldJob) -> None:
        held = self._replace(await self._journal.start(held))
        end = await self._run(held)
        if end is None:
            await _to_the_end(self._forget(held))
            return
        try:
            name = await _to_the_end(self._store(held, end))
            if not await self._outbox.wait_settled(name, self._options.report_wait_s):
                logger.warning("final report waits", extra={"job_id": held.job.job_id})
        finally:
            self._settling = _without(self._settling, held)

    async def _run(self, held: HeldJob) -> Succeeded | Failed | None:
        """Return how the job ended; None if it is not this worker's any more."""
        # The id that its progress is reported to is the one that it has here, too.
        payload = {**held.job.payload, "musetalk_job_id": held.job.musetalk_job_id}
        try:
            request, warnings = read_leniently(
                payload, legacy_size_source=self._options.legacy_size_source
            )
        except ValidationError as exc:
            return Failed(_invalid_job(exc))
        if held.starts > MAX_STARTS:
            return Failed(_gave_up(held))
        if warnings:
            facts = {"job_id": held.job.job_id, "warnings": warnings}
            logger.warning("claimed job not taken as it came", extra=facts)
        ticket = Ticket(warnings=warnings)
        run = ReportedRun(
            self._client,
            held.job,
            self._options,
            run=lambda note: self._runner(request, note, ticket),
            cancel=lambda: self._cancel(request.musetalk_job_id),
            batch_size=self._batch_size(),
            clock=self._clock,
        )
        self._runs[held.key] = run
        try:
            return await run.end()
        finally:
            del self._runs[held.key]

    async def _store(self, held: HeldJob, end: Succeeded | Failed) -> str:
        """Put the final report into the outbox, and only then forget the job."""
        report = self._client.final_report(
            held.job,
            end,
            config_label=self._options.config_label,
            batch_size=self._batch_size(),
        )
        name = await self._outbox.put(report)
        self._settling = (*self._settling, held)
        await self._forget(held)
        return name

    async def _forget(self, held: HeldJob) -> None:
        await self._journal.clear(held)
        self._held = _without(self._held, held)

    def _replace(self, held: HeldJob) -> HeldJob:
        self._held = (*_without(self._held, held), held)
        return held


def _without(jobs: tuple[HeldJob, ...], held: HeldJob) -> tuple[HeldJob, ...]:
    return tuple(each for each in jobs if each.key != held.key)


def _invalid_job(exc: ValidationError) -> str:
    """Return which fields are wrong, without their values: addresses may be signed."""
    errors = exc.errors(include_input=False, include_url=False, include_context=False)
    facts = (f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
    return sendable("The job is invalid: " + "; ".join(facts))


def _gave_up(held: HeldJob) -> str:
    return (
        f"The worker stopped {held.starts - 1} times while it worked on this job, and gave it up."
    )


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
