"""The job registry: every job of this ingress, whatever its origin, in one file of the job store.

    submit ─► queued ─► take ─► running ─► finish ─► succeeded | failed | dead | cancelled
                 ▲                 │
                 └── lease expired ┘   (at most `max_attempts` starts)

The tables, their migrations and the changes of state are those of `orchestrator.store`; this room
has what only an ingress does. A running attempt holds a lease that `beat` renews. An attempt that
has lost its lease may no longer write. A job that clients wait for on open connections (`origin`
sync) is cancelled when its keep-alive runs out, because all of them have disconnected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.store import batches, deliveries
from orchestrator.store import jobs as stored_jobs
from orchestrator.store.delivery_values import Delivery, TakenDelivery, Try
from orchestrator.store.states import STATUSES
from orchestrator.store.tables import jobs
from serve_app.contract.outcomes import Outcome, Progress
from serve_app.contract.requests import JobRequest
from serve_app.jobs import leases, rows, statements, submissions
from serve_app.jobs.job import (
    Followed,
    Job,
    Origin,
    Page,
    SubmissionOptions,
    Verdict,
)
from serve_app.jobs.old_events import bring_over_events
from serve_app.jobs.old_registry import bring_over, set_aside
from serve_app.jobs.state_file import DEFAULT_TIMING, StateTiming, open_file

logger = logging.getLogger(__name__)

# A job with a webhook that waits to be delivered is kept that long, even beyond the configured
# number of jobs, and so many of them are.
DELIVER_WITHIN_S = 24 * 3600.0
MAX_UNDELIVERED = 10_000
PAGE_CHARS = stored_jobs.PAGE_CHARS


class JobRegistry:
    """Stores jobs. Every method is one short transaction and may be called from any thread, except
    that of an event loop.

    All methods raise StoreUnavailable while the file cannot be used. Nothing has changed then.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        timing: StateTiming = DEFAULT_TIMING,
    ) -> None:
        self.timing = timing
        set_aside(path)
        self.file = open_file(path, clock, timing)
        bring_over(path, self.file)
        bring_over_events(path, self.file)

    def close(self) -> None:
        """Close the file. The registry cannot be used afterwards."""
        self.file.close()

    def submit(
        self,
        request: JobRequest,
        origin: Origin,
        max_queued: int,
        submission: SubmissionOptions | None = None,
        *,
        gone: Job | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job, or join the one that has the same id and content; True if it was queued.

        A failed or cancelled job may be submitted again with any content, because its input may be
        available now. So may `gone`, a job that succeeded and whose output no longer exists.

        Raises:
            JobConflict: the id or the idempotency key belongs to different content.
            QueueFull: `max_queued` jobs wait already.
            TooManyJoined: the job has as many webhooks or idempotency keys as it may.
        """
        submission = submission or SubmissionOptions()
        with self.file.write() as tx:
            limit = None if origin is Origin.CLAIMED else max_queued
            return submissions.submit(tx, request, origin, limit, submission, gone)

    def retry(self, job_id: str) -> Job:
        """Queue a job again that has failed, was cancelled or was given up, as its next run.

        Raises:
            JobNotFound: the id is unknown.
            WrongState: the job waits, runs or has succeeded.
        """
        with self.file.write() as tx:
            return submissions.retry(tx, job_id)

    def find(self, job_id: str, idempotency_key: str | None) -> Job | None:
        """Return the job that `submit` would join, None if there is none."""
        with self.file.read() as tx:
            row = submissions.find(tx, job_id, idempotency_key)
            return None if row is None else rows.job_of(row)

    def take(
        self,
        lease_s: float,
        max_attempts: int,
        only: str | None = None,
        active: Iterable[str] = (),
    ) -> Job | None:
        """Start the oldest job that can be started, or the job `only`; None if there is none.

        `active` are jobs that still run in the caller's process, even if their lease has expired.
        """
        with self.file.write() as tx:
            return leases.take(tx, lease_s, max_attempts, only, tuple(active))

    def beat(
        self,
        job: Job,
        lease_s: float,
        progress: Progress,
        phases: Sequence[Progress] = (),
        *,
        has_client: bool = False,
    ) -> Verdict:
        """Renew an attempt's lease. Store its progress and its changes of phase.

        `has_client`: a client of the caller's process waits for the job.
        """
        with self.file.write() as tx:
            if has_client:
                submissions.keep_alive(tx, [job.id], tx.now + submissions.KEEP_ALIVE_S)
            wishes = leases.beat(tx, job, lease_s, progress, phases)
            if wishes is None:
                return Verdict.LOST
            is_deserted = wishes["origin"] == Origin.SYNC and wishes["wanted_until"] < tx.now
            is_over = wishes["cancel_requested"] or is_deserted
            return Verdict.CANCELLED if is_over else Verdict.GO_ON

    def finish(
        self, job: Job, outcome: Outcome, progress: Progress, phases: Sequence[Progress] = ()
    ) -> bool:
        """Store an attempt's outcome and the phases that no beat has stored. Return False if the
        attempt has lost the job.
        """
        with self.file.write() as tx:
            return leases.finish(tx, job, outcome, progress, phases)

    def requeue(self, job: Job, *, if_client_is_back: bool = False) -> bool:
        """Queue a running attempt's job again, as if it had never been started.

        Return False if nothing changed: the attempt has lost the job, or, with
        `if_client_is_back`, the job was cancelled or no client has come back for it.
        """
        with self.file.write() as tx:
            return leases.put_back(tx, job, if_client_is_back=if_client_is_back)

    def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """Cancel a job: at once if it is queued, at its next beat if it runs.

        Return the job and whether it had not ended yet; None if the id is unknown.
        """
        with self.file.write() as tx:
            was_live = leases.cancel(tx, job_id)
            row = tx.execute(statements.READ_ONE, job_id=job_id).mappings().one_or_none()
            return None if row is None else (rows.job_of(row), was_live)

    def keep_alive(self, job_ids: Iterable[str], seconds: float = submissions.KEEP_ALIVE_S) -> None:
        """Keep jobs alive that clients wait for on open connections."""
        with self.file.write() as tx:
            submissions.keep_alive(tx, job_ids, tx.now + seconds)

    def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown or the job has been forgotten."""
        with self.file.read() as tx:
            row = tx.execute(statements.READ_ONE, job_id=job_id).mappings().one_or_none()
            return None if row is None else rows.job_of(row)

    def follow(self, job_id: str, number: int) -> Followed | None:
        """Return a job and its changes of phase of this run that came after event `number`.

        None if the id is unknown.
        """
        with self.file.read() as tx:
            row = tx.execute(statements.READ_ONE, job_id=job_id).mappings().one_or_none()
            if row is None:
                return None
            changes = tx.execute(statements.PHASES_AFTER, job_id=job_id, number=number).mappings()
            events = tuple(rows.event_of(change, row["uncounted"]) for change in changes)
            return Followed(rows.job_of(row), events)

    def page(
        self,
        status: str | None,
        limit: int,
        before: tuple[float, str] | None = None,
        max_chars: int = PAGE_CHARS,
    ) -> Page:
        """Return the newest jobs that are older than the cursor `before`: at most `limit`, and at
        most about `max_chars` of text, but at least one.
        """
        statement = statements.READ
        if status is not None:
            statement = statement.where(jobs.c.state.in_(STATUSES[status]))
        with self.file.read() as tx:
            found, cursor = stored_jobs.newest(tx, statement, limit, before, max_chars)
            return Page(tuple(map(rows.job_of, found)), cursor)

    def sweep(
        self, max_attempts: int, active: Iterable[str] = (), awaited: Iterable[str] = ()
    ) -> list[str]:
        """End the jobs that can never be taken again. Return their ids.

        `active`: see `take`. `awaited` are jobs that clients of the caller's process wait for.
        """
        with self.file.write() as tx:
            submissions.keep_alive(tx, awaited, tx.now + submissions.KEEP_ALIVE_S)
            cancelled = leases.cancel_unwanted(tx)
            return cancelled + leases.abandon(tx, max_attempts, tuple(active))

    def forget(self, keep: int, undelivered: int = MAX_UNDELIVERED) -> None:
        """Delete the oldest ended jobs beyond `keep` with all that belongs to them, once their
        webhooks have been delivered and their batches have ended; then what is left of batches.

        `undelivered`: so many more are kept because their webhooks wait.
        """
        with self.file.write() as tx:
            too_old = tx.now - DELIVER_WITHIN_S
            tx.execute(statements.FORGET, keep=keep, too_old=too_old)
            too_many = {"keep": keep + undelivered}
            if lost := tx.execute(statements.FORGET_UNDELIVERED, **too_many).rowcount:
                logger.error("webhooks are dropped, because too many wait", extra={"jobs": lost})
            batches.forget(tx, too_old)

    def take_delivery(self, lease_s: float) -> TakenDelivery | None:
        """See `deliveries.take`."""
        with self.file.write() as tx:
            return deliveries.take(tx, lease_s)

    def settle_delivery(self, taken: TakenDelivery, result: Try, pause_s: float | None) -> bool:
        """See `deliveries.settle`."""
        with self.file.write() as tx:
            return deliveries.settle(tx, taken, result, pause_s)

    def seconds_to_next_delivery(self) -> float | None:
        """See `deliveries.seconds_to_next`."""
        with self.file.read() as tx:
            return deliveries.seconds_to_next(tx)

    def deliveries(self, job_id: str) -> tuple[Delivery, ...]:
        """Return the deliveries of a job, the first one first."""
        with self.file.read() as tx:
            return deliveries.of_job(tx, job_id)

    def deliver_again(self, job_id: str, delivery_id: str) -> Delivery:
        """See `deliveries.again`."""
        with self.file.write() as tx:
            return deliveries.again(tx, job_id, delivery_id)

    def newest_metrics(self, limit: int) -> list[dict[str, Any]]:
        """Return the metrics of the jobs that succeeded last, the newest first."""
        with self.file.read() as tx:
            return list(tx.execute(statements.NEWEST_METRICS, at_most=limit).scalars())

    def count_queued(self) -> int:
        """Return how many jobs wait."""
        with self.file.read() as tx:
            return tx.execute(statements.COUNT_QUEUED).scalar() or 0

    def unfinished(self) -> int:
        """Return how many jobs wait or run, those of other processes too."""
        with self.file.read() as tx:
            return tx.execute(statements.COUNT_UNFINISHED).scalar() or 0
