"""The job registry: every job of this ingress, whatever its origin, in one SQLite file.

The states of a job:

    submit ─► queued ─► take ─► running ─► finish ─► succeeded | failed | cancelled
                 ▲                 │
                 └── lease expired ┘   (at most `max_attempts` starts)

A running attempt holds a lease that `beat` renews. An attempt that has lost its lease may no longer
write. A job that clients wait for on open connections (`origin` sync) is cancelled when its
keep-alive runs out, because all of them have disconnected.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from serve_app.contract.outcomes import Failure, JobStatus, Outcome, Progress
from serve_app.contract.requests import JobRequest
from serve_app.jobs import rows, submissions
from serve_app.jobs.job import (
    ABANDONED,
    CANCELLED,
    Followed,
    Job,
    JobConflict,
    Origin,
    Page,
    PendingNotification,
    QueueFull,
    SubmissionOptions,
    TooManyJoined,
    Verdict,
    content_key,
)
from serve_app.jobs.state_file import DEFAULT_TIMING, StateFile, StateTiming

__all__ = [
    "ABANDONED",
    "CANCELLED",
    "Job",
    "JobConflict",
    "JobRegistry",
    "Origin",
    "QueueFull",
    "SubmissionOptions",
    "TooManyJoined",
    "Verdict",
    "content_key",
]

# The next owner of the worker identity resumes a claimed job. A restart takes less than this.
CLAIM_GRACE_S = 120.0
MAX_PHASES = 64  # stored of one job; an attempt has six
# A job with a due webhook is kept that long, even beyond the configured number of jobs.
NOTIFY_WITHIN_S = 24 * 3600.0
PAGE_BYTES = 1 << 20


class JobRegistry:
    """Stores jobs. Every method is one short transaction and may be called from any thread, except
    that of an event loop.

    All methods raise StateUnavailable while the file cannot be used. Nothing has changed then.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        timing: StateTiming = DEFAULT_TIMING,
    ) -> None:
        self._clock = clock
        # Jobs of another schema version are dropped. Their callers submit them again.
        self.file = StateFile(path, rows.SCHEMA_VERSION, rows.SCHEMA, timing)

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
        with self.file.writing() as db:
            row = submissions.find(db, request.musetalk_job_id, submission.idempotency_key)
            job_id = request.musetalk_job_id if row is None else row["id"]
            request = request.model_copy(update={"musetalk_job_id": job_id})
            is_new = row is None or submissions.may_run_again(row, gone)
            if is_new:
                self._check_room(db, origin, max_queued)
                submissions.enter(db, request, origin, submission, self._clock())
            elif row["content_key"] != content_key(request):
                raise JobConflict(job_id)
            else:
                submissions.join(db, row, request, origin, submission, self._clock())
            submissions.subscribe(db, job_id, submission)
            return rows.job_of(rows.get(db, job_id)), is_new

    def find(self, job_id: str, idempotency_key: str | None) -> Job | None:
        """Return the job that `submit` would join, None if there is none."""
        with self.file.reading() as db:
            row = submissions.find(db, job_id, idempotency_key)
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
        values = {
            "attempt_id": uuid.uuid4().hex,
            "now": self._clock(),
            "lease_s": lease_s,
            "max_attempts": max_attempts,
            "only": only,
            "active": json.dumps(list(active)),
        }
        with self.file.writing() as db:
            row = db.execute(rows.TAKE, values).fetchone()
        return None if row is None else rows.job_of(row)

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
        now = self._clock()
        values = {
            "now": now,
            "lease_s": lease_s,
            "progress": rows.progress_json(progress),
            "wanted_until": now + submissions.KEEP_ALIVE_S if has_client else 0.0,
            "id": job.id,
            "attempt_id": job.attempt_id,
        }
        with self.file.writing() as db:
            row = db.execute(rows.BEAT, values).fetchone()
            if row is None:
                return Verdict.LOST
            self._add_phases(db, job, phases)
        is_deserted = row["origin"] == Origin.SYNC and row["wanted_until"] < now
        return Verdict.CANCELLED if row["cancel_requested"] or is_deserted else Verdict.GO_ON

    def finish(
        self, job: Job, outcome: Outcome, progress: Progress, phases: Sequence[Progress] = ()
    ) -> bool:
        """Store an attempt's outcome and the phases that no beat has stored. Return False if the
        attempt has lost the job.
        """
        status: JobStatus = "succeeded"
        if isinstance(outcome, Failure):
            status = "cancelled" if outcome.cancelled else "failed"
        with self.file.writing() as db:
            done = db.execute(
                "UPDATE jobs SET status = ?, outcome = ?, progress = ?, lease_until = NULL, "
                "updated = ? WHERE id = ? AND attempt_id = ? AND status = 'running'",
                (
                    status,
                    rows.outcome_json(outcome),
                    rows.progress_json(progress),
                    self._clock(),
                    job.id,
                    job.attempt_id,
                ),
            ).rowcount
            if done:
                self._add_phases(db, job, phases)
        return bool(done)

    def requeue(self, job: Job, *, if_client_is_back: bool = False) -> bool:
        """Queue a running attempt's job again, as if it had never been started.

        Return False if nothing changed: the attempt has lost the job, or, with
        `if_client_is_back`, the job was cancelled or no client has come back for it.
        """
        condition = rows.CLIENT_IS_BACK if if_client_is_back else "TRUE"
        with self.file.writing() as db:
            done = db.execute(
                "UPDATE jobs SET status = 'queued', attempt = attempt - 1, lease_until = NULL, "
                "updated = :now WHERE id = :id AND attempt_id = :attempt_id "
                f"AND status = 'running' AND {condition}",
                {"now": self._clock(), "id": job.id, "attempt_id": job.attempt_id},
            ).rowcount
        return bool(done)

    def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """Cancel a job: at once if it is queued, at its next beat if it runs.

        Return the job and whether it had not ended yet; None if the id is unknown.
        """
        with self.file.writing() as db:
            live = db.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? "
                "AND status IN ('queued', 'running')",
                (job_id,),
            ).rowcount
            self._cancel_queued(db, job_id)
            row = rows.get(db, job_id)
        return None if row is None else (rows.job_of(row), bool(live))

    def keep_alive(self, job_ids: Iterable[str], seconds: float = submissions.KEEP_ALIVE_S) -> None:
        """Keep jobs alive that clients wait for on open connections."""
        with self.file.writing() as db:
            submissions.keep_alive(db, job_ids, self._clock() + seconds)

    def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown or the job has been forgotten."""
        with self.file.reading() as db:
            row = rows.get(db, job_id)
            return None if row is None else rows.job_of(row)

    def follow(self, job_id: str, run: int, number: int) -> Followed | None:
        """Return a job and its changes of phase after `number`, or all of them if the job is no
        longer in that `run`. None if the id is unknown.
        """
        with self.file.reading() as db:
            row = rows.get(db, job_id)
            if row is None:
                return None
            job = rows.job_of(row)
            events = db.execute(
                "SELECT * FROM phases WHERE job_id = ? AND number > ? ORDER BY number",
                (job_id, number if job.run == run else 0),
            ).fetchall()
        return Followed(job, tuple(map(rows.event_of, events)))

    def count_queued(self) -> int:
        """Return how many jobs wait for a slot."""
        with self.file.reading() as db:
            counted = db.execute("SELECT COUNT(*) FROM jobs WHERE status = 'queued'").fetchone()
        return int(counted[0])

    def page(
        self,
        status: str | None,
        limit: int,
        before: tuple[float, str] | None = None,
        max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Return the newest jobs that are older than the cursor `before`: at most `limit`, and at
        most about `max_bytes` of JSON, but at least one.
        """
        created, job_id = before or (float("inf"), "")
        values = {"status": status, "created": created, "id": job_id}
        jobs: list[Job] = []
        taken_bytes = 0
        with self.file.reading() as db:
            found = db.execute(
                rows.READ + "WHERE (:status IS NULL OR status = :status) "
                "AND (created < :created OR (created = :created AND id < :id)) "
                "ORDER BY created DESC, id DESC",
                values,
            )
            for row in found:
                taken_bytes += rows.stored_bytes(row)
                if len(jobs) == limit or (jobs and taken_bytes > max_bytes):
                    return Page(tuple(jobs), has_more=True)
                jobs.append(rows.job_of(row))
        return Page(tuple(jobs), has_more=False)

    def sweep(
        self, max_attempts: int, active: Iterable[str] = (), awaited: Iterable[str] = ()
    ) -> list[str]:
        """End the jobs that can never be taken again. Return their ids.

        `active`: see `take`. `awaited` are jobs that clients of the caller's process wait for.
        """
        now = self._clock()
        values = {
            "now": now,
            "max_attempts": max_attempts,
            "claim_grace_s": CLAIM_GRACE_S,
            "active": json.dumps(list(active)),
            "outcome": rows.outcome_json(ABANDONED),
        }
        with self.file.writing() as db:
            submissions.keep_alive(db, awaited, now + submissions.KEEP_ALIVE_S)
            cancelled = self._cancel_queued(db, None)
            abandoned = db.execute(rows.FAIL_ABANDONED, values).fetchall()
        return cancelled + [row["id"] for row in abandoned]

    def forget(self, keep: int) -> None:
        """Delete the oldest ended jobs beyond `keep` with all that belongs to them, once their
        webhooks have been queued.
        """
        with self.file.writing() as db:
            db.execute(rows.FORGET, {"keep": keep, "too_old": self._clock() - NOTIFY_WITHIN_S})

    def pending_notifications(self, limit: int) -> list[PendingNotification]:
        """Return the webhooks that are due because their job has ended."""
        with self.file.reading() as db:
            found = db.execute(rows.PENDING_NOTIFICATIONS, {"limit": limit})
            return [rows.notification_of(row) for row in found]

    def mark_notified(self, notification: PendingNotification) -> None:
        """Mark a webhook as queued for this end of its job. It stays due for any other end."""
        job = notification.job
        values = {
            "id": job.id,
            "url": notification.webhook_url,
            "run": job.run,
            "attempt": job.attempt,
            "status": job.status,
        }
        with self.file.writing() as db:
            db.execute(rows.MARK_NOTIFIED, values)

    def _check_room(self, db: sqlite3.Connection, origin: Origin, max_queued: int) -> None:
        waiting = db.execute("SELECT count(*) FROM jobs WHERE status = 'queued'").fetchone()[0]
        if waiting >= max_queued and origin is not Origin.CLAIMED:
            raise QueueFull

    def _add_phases(self, db: sqlite3.Connection, job: Job, phases: Sequence[Progress]) -> None:
        for progress in phases:
            values = {
                "id": job.id,
                "attempt": job.attempt,
                "now": self._clock(),
                "progress": rows.progress_json(progress),
            }
            db.execute(rows.ADD_PHASE, values)
        if phases:
            db.execute(rows.DROP_OLD_PHASES, {"id": job.id, "keep": MAX_PHASES})

    def _cancel_queued(self, db: sqlite3.Connection, only: str | None) -> list[str]:
        outcome = rows.outcome_json(CANCELLED)
        values = {"now": self._clock(), "outcome": outcome, "only": only}
        return [row["id"] for row in db.execute(rows.CANCEL_QUEUED, values).fetchall()]
