"""A worker that polls an orchestrator: one identity, and up to `capacity` jobs at once.

    beat_forever    a heartbeat at every interval, from its own thread, with all jobs
    claim_and_run   resume or claim ─► run ─► store the final report ─► wait for its acceptance
                                        └─ progress, best effort; its answers may stop the job

`claim_and_run` runs one job. It may be called again meanwhile, but only one call claims at a time.
It is called inside a request that the ingress replica has accepted. A draining replica accepts no
requests, so it claims nothing, and Serve waits for it while a job runs. A run ends in one of three
ways:

- The job ends. Its report is stored on disk before it is sent, and sent until it is accepted.
- The orchestrator answers that the job is gone. It is cancelled and nothing is reported.
- `claim_and_run` is cancelled, or the process dies. The claim stays in the journal, and the next
  owner of this identity resumes it. If there is none, the heartbeats stop and the orchestrator puts
  the job back into its queue.

An orchestrator whose answers to heartbeats have the additions of docs/protocol.md §9 may hold a
claim until there is a job. Such a claim is given up when something else is to be done here. If a
job was handed out in that moment, the heartbeats do not list it, and it goes back into the queue.
`leave` says goodbye to such an orchestrator, which then takes back all jobs of this worker at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError

from orchestrator.client import FailureReport, HeartbeatAnswer, SuccessReport, WorkerClient
from orchestrator.errors import OrchestratorError
from serve_app.contract.lenient import read_leniently
from serve_app.contract.outcomes import Outcome
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.heartbeat import Heartbeats, HeartbeatState
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.reported_run import ReportedRun, sendable
from serve_app.jobs.job import ProgressCallback, SubmissionOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")

Runner = Callable[[JobRequest, ProgressCallback, SubmissionOptions], Awaitable[Outcome]]
Cancel = Callable[[str], Awaitable[None]]

MAX_STARTS = 3
HELD_S = 1.0  # an orchestrator that answers later than that has held the claim
INVALID_JOB: Mapping[str, JsonValue] = {
    "error_type": "media_error",
    "code": "invalid_request",
    "retryable": False,
}
NOT_READY = "No replica can take a job."
OUTBOX_FULL = "Too many final reports wait to be accepted."
NO_STORAGE = (
    "This worker has nowhere to store results: set B2_KEY_ID, B2_APP_KEY and B2_BUCKET_NAME, or "
    "use an orchestrator that signs addresses for outputs."
)
DRAINING = "The orchestrator asked this worker to claim nothing more."


class FleetWorker:
    """Claims, runs and reports jobs under one worker identity, and sends its heartbeats.

    Args:
        connect: makes a client. It is called once per event loop; the heartbeats have their own.
        outbox: the caller runs its `deliver_forever`.
        runner: runs a job and returns its outcome. Its own deadlines end it.
        cancel: cancels a running job, by its `musetalk_job_id`.
        can_run: returns whether a job could run now. It is called before every claim, and before an
            unfinished job is resumed, because a job that cannot be stored would be reported as
            failed.
        batch_size: returns the batch size for the reports, at the start and the end of a job.
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
        can_run: Callable[[], Awaitable[bool]],
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
        self._can_run = can_run
        self._options = options or WorkerOptions()
        self._batch_size = batch_size
        self._sleep = sleep
        self._clock = clock
        # The heartbeat thread reads these tuples, so they are replaced and never changed.
        self._held: tuple[HeldJob, ...] = ()
        self._reporting: tuple[HeldJob, ...] = ()  # their reports are stored but not accepted yet
        self._active: set[str] = set()  # keys of held jobs that a call of `claim_and_run` runs
        self._runs: dict[str, ReportedRun] = {}  # by the same keys
        self._is_claiming = False
        self._claiming: asyncio.Task[HeldJob | None] | None = None  # a claim that may be held
        self._is_drained = False
        self._can_store: bool | None = self._options.has_storage or None  # None: not known yet
        self._has_additions = False  # of the orchestrator, by its last answer to a heartbeat
        self._claim_again_at = float("-inf")
        self._error: str | None = None  # why no job can run, for the heartbeats
        self._called_at = clock()

    @property
    def current_job_id(self) -> str | None:
        """The oldest job that this worker holds: running, being reported, or to be resumed."""
        jobs = self._jobs()
        return jobs[0].job.job_id if jobs else None

    async def beat_forever(self) -> None:
        """Send heartbeats until cancelled, the first one immediately."""
        loop = asyncio.get_running_loop()

        def on_answer(answer: HeartbeatAnswer) -> None:
            loop.call_soon_threadsafe(self._apply, answer)

        heartbeats = Heartbeats(
            self._connect,
            self._heartbeat_state,
            self._options.heartbeat_interval_s,
            on_answer=on_answer,
        )
        heartbeats.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.to_thread(heartbeats.stop))

    async def claim_and_run(self, give_up: asyncio.Event | None = None) -> bool:
        """Run one job from claim to report. Return False if there was none.

        A call returns False at once if all slots are taken, if another call claims, or if the last
        claim without a job was too short a time ago. A claim that the orchestrator holds is given
        up when `give_up` is set.
        """
        self._called_at = called_at = self._clock()
        if self._is_claiming or len(self._active) >= self._options.capacity:
            return False
        if called_at < self._claim_again_at:
            return False
        held = await self._next_job(give_up or asyncio.Event())
        if held is None:
            now = self._clock()
            was_held = now - called_at >= HELD_S or (give_up is not None and give_up.is_set())
            # An orchestrator that holds claims sets their pace.
            is_paced = self._has_additions and was_held
            pause_s = 0.0 if is_paced else self._options.claim_interval_s
            self._claim_again_at = now + pause_s
            return False
        try:
            await self._run_and_report(held)
        finally:
            self._active.discard(held.key)
            self._claim_again_at = float("-inf")  # the next job may be waiting
        return True

    async def leave(self, reason: str) -> None:
        """Let the orchestrator take back all jobs of this worker at once, because it ends.

        Call it when nothing runs any more and `beat_forever` has ended, because a heartbeat would
        take it back. Nothing is sent to an orchestrator without the additions, nor while another
        process owns this identity, nor while a final report waits, as its job is done.
        """
        if not self._has_additions or not await asyncio.to_thread(self._journal.acquire):
            return
        if await asyncio.to_thread(self._outbox.pending):
            return
        try:
            await self._client.goodbye(reason)
        except OrchestratorError as exc:
            # The leases run out instead, and the jobs return then.
            logger.warning("goodbye not accepted", extra={"error": exc.message})
            return
        logger.info("goodbye said", extra={"jobs": len(self._held)})
        for held in self._held:
            await self._forget(held)

    async def aclose(self) -> None:
        """Close the connections and let another process own this identity."""
        await self._client.aclose()
        self._journal.release()

    # Heartbeats, in their thread -------------------------------------------------------------

    def _heartbeat_state(self) -> HeartbeatState | None:
        """Return the content of the next heartbeat. Runs in the heartbeat thread."""
        if not self._journal.acquire():
            return None
        jobs = self._jobs(self._journal.read())
        if jobs:
            claimed = tuple(held.job for held in jobs)
            return HeartbeatState("busy", claimed[0].job_id, self._error, claimed)
        is_uncalled = self._clock() - self._called_at > self._options.handover_s
        if is_uncalled and self._journal.has_successor():
            # A drained replica gets no calls any more, so its successor may own the identity. If no
            # successor takes it, the next heartbeat acquires it again.
            self._journal.release()
            return None
        return HeartbeatState("idle", None, self._error)

    def _jobs(self, stored: tuple[HeldJob, ...] = ()) -> tuple[HeldJob, ...]:
        """Return all jobs of this worker, the oldest first.

        `stored` are those in the journal. An earlier process may have left some of them unfinished.
        """
        by_key = {held.key: held for held in stored + self._held + self._reporting}
        return tuple(by_key[key] for key in sorted(by_key))

    def _apply(self, answer: HeartbeatAnswer) -> None:
        """Apply the answer to a heartbeat. Runs in the event loop."""
        self._is_drained = answer.drain
        if answer.has_additions and not self._has_additions:
            self._claim_again_at = float("-inf")  # the next claim can be held
        self._has_additions = answer.has_additions
        if not (self._options.has_storage or answer.has_outputs) and self._can_store is not False:
            logger.warning(NO_STORAGE)
        self._can_store = self._options.has_storage or answer.has_outputs
        if answer.drain and self._claiming is not None:
            self._claiming.cancel()
        for held in self._held:
            run = self._runs.get(held.key)
            if run is not None and held.job.musetalk_job_id in answer.cancel:
                logger.info("job cancelled by heartbeat", extra={"job_id": held.job.job_id})
                run.stop()

    # Claims ----------------------------------------------------------------------------------

    async def _next_job(self, give_up: asyncio.Event) -> HeldJob | None:
        """Return an unfinished or a claimed job, marked as active; None if there is none."""
        # Meanwhile no other call does this, so that a job that was just claimed is not taken for an
        # unfinished one.
        self._is_claiming = True
        try:
            if not await asyncio.to_thread(self._journal.acquire):
                return None  # a draining predecessor still owns this identity
            if not await self._can_run():
                self._error = NOT_READY
                return None
            held = await self._unfinished() or await self._claim(give_up)
            if held is not None:
                self._active.add(held.key)
            return held
        finally:
            self._is_claiming = False

    async def _unfinished(self) -> HeldJob | None:
        """Return a job whose call was cancelled, or that an earlier process left unfinished."""
        for held in self._held:
            if held.key not in self._active:
                return held
        # Read before the journal, because a job that ends meanwhile must not be resumed.
        known = {held.key for held in self._held}
        stored = await asyncio.to_thread(self._journal.read)
        for held in stored:
            if held.key not in known:
                self._held = (*self._held, held)
                return held
        return None

    async def _claim(self, give_up: asyncio.Event) -> HeldJob | None:
        """Claim a job. Repeat that after each backoff while the orchestrator does not answer."""
        for pause_s in (*self._options.claim_backoff_s, None):
            self._called_at = self._clock()
            self._error = await self._reason_not_to_claim()
            if self._error is not None:
                return None
            try:
                return await self._claim_in_one_go(give_up)
            except OrchestratorError as exc:
                self._error = exc.message
                logger.warning("claim failed", extra={"error": exc.message})
                if pause_s is None or not exc.retryable:
                    return None
            await self._sleep(pause_s)
        raise AssertionError("unreachable: the last claim returns")

    async def _claim_in_one_go(self, give_up: asyncio.Event) -> HeldJob | None:
        """Claim once, held if the orchestrator can do that.

        A claim that is not held is never cancelled, because the orchestrator might not notice that
        its answer was lost.
        """
        if not self._has_additions:
            return await _complete(self._claim_once(0.0))
        self._claiming = claiming = asyncio.create_task(
            self._claim_once(self._options.claim_wait_s)
        )
        given_up = asyncio.create_task(give_up.wait())
        try:
            await asyncio.wait({claiming, given_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._claiming = None
            for task in (claiming, given_up):
                task.cancel()
            await asyncio.wait({claiming})
        return None if claiming.cancelled() else claiming.result()

    async def _claim_once(self, wait_s: float) -> HeldJob | None:
        claim = await self._client.claim(wait_s)
        if claim.error:
            self._error = claim.error
            logger.warning("the orchestrator handed out no job", extra={"error": claim.error})
        if claim.job is None:
            return None
        logger.info("job claimed", extra={"job_id": claim.job.job_id})
        # Held from here on. If the caller is cancelled now, the job still belongs to this worker,
        # and the next heartbeat has to name it.
        held = HeldJob(claim.job)
        self._held = (*self._held, held)
        return held

    async def _reason_not_to_claim(self) -> str | None:
        if self._is_drained:
            return DRAINING
        if not self._can_store:
            return NO_STORAGE
        if not await self._can_run():
            return NOT_READY
        if await asyncio.to_thread(lambda: self._outbox.is_full):
            return OUTBOX_FULL
        return None

    # One job ---------------------------------------------------------------------------------

    async def _run_and_report(self, held: HeldJob) -> None:
        held = self._replace(await self._journal.start(held))
        report = await self._run(held)
        if report is None:
            await _complete(self._forget(held))
            return
        try:
            name = await _complete(self._store(held, report))
            if not await self._outbox.wait_settled(name, self._options.report_wait_s):
                logger.warning("final report waits", extra={"job_id": held.job.job_id})
        finally:
            self._reporting = _without(self._reporting, held)

    async def _run(self, held: HeldJob) -> SuccessReport | FailureReport | None:
        """Run a job. Return what to report of its end, None if it is gone."""
        # The job has the id here that its progress is reported to.
        payload = {**held.job.payload, "musetalk_job_id": held.job.musetalk_job_id}
        try:
            request, warnings = read_leniently(
                payload, legacy_size_source=self._options.legacy_size_source
            )
        except ValidationError as exc:
            return FailureReport(_invalid_job(exc), facts=INVALID_JOB)
        output = held.job.output
        if output is None and not self._options.has_storage:
            return FailureReport(NO_STORAGE, facts={"code": "upload_failed"})
        if held.starts > MAX_STARTS:
            return FailureReport(_gave_up(held), facts={"code": "abandoned"})
        if warnings:
            facts = {"job_id": held.job.job_id, "warnings": warnings}
            logger.warning("values of a claimed job were replaced by defaults", extra=facts)
        submission = SubmissionOptions(warnings=warnings, output=output)
        run = ReportedRun(
            self._client,
            held.job,
            self._options,
            run=lambda on_progress: self._runner(request, on_progress, submission),
            cancel=lambda: self._cancel(request.musetalk_job_id),
            batch_size=self._batch_size(),
            clock=self._clock,
        )
        self._runs[held.key] = run
        try:
            return await run.to_end()
        finally:
            del self._runs[held.key]

    async def _store(self, held: HeldJob, report: SuccessReport | FailureReport) -> str:
        """Put the final report into the outbox, and only then forget the job."""
        final = self._client.final_report(
            held.job,
            report,
            config_label=self._options.config_label,
            batch_size=self._batch_size(),
        )
        name = await self._outbox.put(final)
        self._reporting = (*self._reporting, held)
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
    """Return which fields are invalid, without their values, as addresses may be signed."""
    errors = exc.errors(include_input=False, include_url=False, include_context=False)
    facts = (f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
    return sendable("The job is invalid: " + "; ".join(facts))


def _gave_up(held: HeldJob) -> str:
    return (
        f"The worker stopped {held.starts - 1} times while it worked on this job, and gave it up."
    )


async def _complete(step: Coroutine[Any, Any, T]) -> T:
    """Await a step to its end, even if the caller is cancelled. The cancellation is raised then."""
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            logger.error("failed while shutting down", exc_info=task.exception())
        raise
