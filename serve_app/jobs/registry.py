"""The job registry: every job of this ingress, however it came in, in one SQLite file.

A job's life:

    submit ─► queued ─► take ─► running ─► finish ─► succeeded | failed | cancelled
                 ▲                 │
                 └── lease expired ┘   (at most `max_attempts` starts)

A running attempt holds a lease that `beat` renews; an attempt that lost it may no longer write. A
job that a client waits for on an open connection (`origin` sync) is dropped when nobody wants it
any more.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from serve_app.contract.outcomes import Failure, JobStatus, Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.jobs import joining, rows
from serve_app.jobs.job import (
    ABANDONED,
    CANCELLED,
    Followed,
    Job,
    JobConflict,
    News,
    Origin,
    Page,
    QueueFull,
    Ticket,
    TooManyJoined,
    Verdict,
    content_key,
)
from serve_app.jobs.state_file import StateFile

__all__ = [
    "ABANDONED",
    "CANCELLED",
    "Job",
    "JobConflict",
    "JobRegistry",
    "Origin",
    "QueueFull",
    "Ticket",
    "TooManyJoined",
    "Verdict",
    "content_key",
]

WANTED_S = 5.0  # a waiting connection renews its wish well within this
# A claimed job is resumed by whoever speaks for its worker identity next; a restart takes less.
CLAIM_GRACE_S = 120.0
MAX_PHASES = 64  # remembered of one job; an attempt has six
MAX_WARNINGS = 32
# A job of whose end a target has not been told yet is kept that long, whatever there is beyond it.
UNTOLD_S = 24 * 3600.0
PAGE_BYTES = 1 << 20


class JobRegistry:
    """Every statement is one short transaction; callers on any thread but an event loop's.

    All methods raise StateUnavailable while the file cannot be used; nothing has happened then.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Jobs of an older worker ended with it: their callers ask again, and get done again.
        self.file = StateFile(path, rows.SCHEMA_VERSION, rows.SCHEMA)

    def close(self) -> None:
        """Close the file. The registry cannot be used afterwards."""
        self.file.close()

    def submit(
        self,
        request: JobRequest,
        origin: Origin,
        max_queued: int,
        ticket: Ticket | None = None,
        *,
        gone: Job | None = None,
    ) -> tuple[Job, bool]:
        """Enter a job, or join the one that has the same id and content; True if work is needed.

        A failed or cancelled job may come again with any content: what it lacked may be there now.
        So may `gone`, a job that succeeded and whose output cannot be found any more.

        Raises:
            JobConflict: the id, or the idempotency key, stands for different content.
            QueueFull: `max_queued` jobs wait already.
            TooManyJoined: the job has as many webhooks or idempotency keys as it may.
        """
        ticket = ticket or Ticket()
        with self.file.writing() as db:
            row = joining.find(db, request.musetalk_job_id, ticket.idempotency_key)
            job_id = request.musetalk_job_id if row is None else row["id"]
            request = request.model_copy(update={"musetalk_job_id": job_id})
            is_new = row is None or joining.may_come_again(row, gone)
            if is_new:
                self._check_room(db, origin, max_queued)
                self._enter(db, job_id, request, origin, ticket)
            elif row["content_key"] != content_key(request):
                raise JobConflict(job_id)
            else:
                self._join(db, row, request, origin, ticket)
            joining.subscribe(db, job_id, ticket)
            return rows.job_of(joining.get(db, job_id)), is_new

    def find(self, job_id: str, idempotency_key: str | None) -> Job | None:
        """Return the job that `submit` would join, None if there is none."""
        with self.file.reading() as db:
            row = joining.find(db, job_id, idempotency_key)
            return None if row is None else rows.job_of(row)

    def take(
        self,
        lease_s: float,
        max_attempts: int,
        only: str | None = None,
        living: Iterable[str] = (),
    ) -> Job | None:
        """Start the oldest job that can be started, or `only` that one; None if there is none.

        `living` are jobs that the caller is still at work on, whatever their lease says.
        """
        values = {
            "attempt_id": uuid.uuid4().hex,
            "now": self._clock(),
            "lease_s": lease_s,
            "max_attempts": max_attempts,
            "only": only,
            "living": json.dumps(list(living)),
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
        is_wanted: bool = False,
    ) -> Verdict:
        """Renew an attempt's lease, store its progress and what it changed its phase to.

        `is_wanted`: a client waits for the job in the caller's process.
        """
        now = self._clock()
        values = {
            "now": now,
            "lease_s": lease_s,
            "progress": rows.progress_json(progress),
            "wanted_until": now + WANTED_S if is_wanted else 0.0,
            "id": job.id,
            "attempt_id": job.attempt_id,
        }
        with self.file.writing() as db:
            row = db.execute(rows.BEAT, values).fetchone()
            if row is None:
                return Verdict.LOST
            self._add_phases(db, job, phases)
        unwanted = row["origin"] == Origin.SYNC and row["wanted_until"] < now
        return Verdict.CANCELLED if row["cancel_requested"] or unwanted else Verdict.GO_ON

    def finish(
        self, job: Job, outcome: Outcome, progress: Progress, phases: Sequence[Progress] = ()
    ) -> bool:
        """Store an attempt's outcome, and the phases that no beat has stored; False if the attempt
        is no longer the job's.
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

    def requeue(self, job: Job, *, if_wanted: bool = False) -> bool:
        """Put a running attempt's job back, as if never started; the next `take` starts it.

        False if it stays: the attempt is no longer the job's, or, with `if_wanted`, nobody wants
        the job (any more, or again).
        """
        condition = rows.WANTED_AGAIN if if_wanted else "TRUE"
        with self.file.writing() as db:
            done = db.execute(
                "UPDATE jobs SET status = 'queued', attempt = attempt - 1, lease_until = NULL, "
                "updated = :now WHERE id = :id AND attempt_id = :attempt_id "
                f"AND status = 'running' AND {condition}",
                {"now": self._clock(), "id": job.id, "attempt_id": job.attempt_id},
            ).rowcount
        return bool(done)

    def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """Ask for a job's end: at once if it waits, at its next beat if it runs.

        Returns the job, and whether there was anything to end; None if the id is unknown.
        """
        with self.file.writing() as db:
            live = db.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? "
                "AND status IN ('queued', 'running')",
                (job_id,),
            ).rowcount
            self._end_unwanted(db, job_id)
            row = joining.get(db, job_id)
        return None if row is None else (rows.job_of(row), bool(live))

    def want(self, job_ids: Iterable[str], seconds: float = WANTED_S) -> None:
        """Say that connections wait for these jobs; 0 seconds: not any longer."""
        with self.file.writing() as db:
            self._want(db, job_ids, seconds)

    def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown (or forgotten)."""
        with self.file.reading() as db:
            row = joining.get(db, job_id)
            return None if row is None else rows.job_of(row)

    def follow(self, job_id: str, run: int, number: int) -> Followed | None:
        """Return a job, and its changes of phase after `number` if it is still in that run.

        If it is in another run, return all of them. None if the id is unknown.
        """
        with self.file.reading() as db:
            row = joining.get(db, job_id)
            if row is None:
                return None
            job = rows.job_of(row)
            events = db.execute(
                "SELECT * FROM phases WHERE job_id = ? AND number > ? ORDER BY number",
                (job_id, number if job.run == run else 0),
            ).fetchall()
        return Followed(job, tuple(map(rows.event_of, events)))

    def page(
        self,
        status: str | None,
        limit: int,
        before: tuple[float, str] | None = None,
        max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Return the newest jobs first, older than the `before` cursor: at most `limit`, and no
        more than fit into about `max_bytes` of JSON, but one at least.
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
        self, max_attempts: int, living: Iterable[str] = (), wanted: Iterable[str] = ()
    ) -> list[str]:
        """End the jobs that can never be taken again; their ids.

        `living`: see `take`. `wanted` are jobs that clients wait for in the caller's process.
        """
        values = {
            "now": self._clock(),
            "max_attempts": max_attempts,
            "claim_grace_s": CLAIM_GRACE_S,
            "living": json.dumps(list(living)),
            "outcome": rows.outcome_json(ABANDONED),
        }
        with self.file.writing() as db:
            self._want(db, wanted, WANTED_S)
            unwanted = self._end_unwanted(db, None)
            abandoned = db.execute(rows.FAIL_ABANDONED, values).fetchall()
        return unwanted + [row["id"] for row in abandoned]

    def forget(self, keep: int) -> None:
        """Drop the oldest finished jobs beyond `keep`, and all that belongs to them, once those who
        want to know of their end have been told.
        """
        with self.file.writing() as db:
            db.execute(rows.FORGET, {"keep": keep, "too_old": self._clock() - UNTOLD_S})

    def take_news(self, limit: int) -> list[News]:
        """Return ended jobs with targets that have not been told of it yet."""
        with self.file.reading() as db:
            return [rows.news_of(row) for row in db.execute(rows.NEWS, {"limit": limit})]

    def mark_notified(self, news: News) -> None:
        """Say that a target has been told of this end of a job. Of another end it has not."""
        job = news.job
        values = {
            "id": job.id,
            "url": news.webhook_url,
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

    def _enter(
        self,
        db: sqlite3.Connection,
        job_id: str,
        request: JobRequest,
        origin: Origin,
        ticket: Ticket,
    ) -> None:
        now = self._clock()
        values = {
            "id": job_id,
            "request": request.model_dump_json(),
            "content_key": content_key(request),
            "origin": origin,
            "now": now,
            "wanted_until": now + WANTED_S,
            "progress": rows.progress_json(Progress(Phase.QUEUED, 0.0)),
            "metadata": None if ticket.metadata is None else json.dumps(ticket.metadata),
            "warnings": json.dumps(ticket.warnings),
            "queue_job_id": ticket.queue_job_id,
        }
        db.execute(rows.ENTER, values)
        db.execute("DELETE FROM phases WHERE job_id = ?", (job_id,))
        # Who was told of the end before is done with; who was not is told of the next one.
        db.execute("DELETE FROM subscribers WHERE job_id = ? AND notified", (job_id,))

    def _join(
        self,
        db: sqlite3.Connection,
        row: sqlite3.Row,
        request: JobRequest,
        origin: Origin,
        ticket: Ticket,
    ) -> None:
        """Let one more caller wait for a job that is here; it keeps what each of them brought."""
        job = rows.job_of(row)
        metadata = joining.merged(job.metadata, ticket.metadata)
        warnings = tuple(dict.fromkeys(job.warnings + ticket.warnings))[:MAX_WARNINGS]
        db.execute(
            "UPDATE jobs SET metadata = ?, warnings = ?, queue_job_id = coalesce(?, queue_job_id) "
            "WHERE id = ?",
            (
                None if metadata is None else json.dumps(metadata),
                json.dumps(warnings),
                ticket.queue_job_id,
                job.id,
            ),
        )
        if job.is_terminal:
            return
        # The same content, but its addresses may be signed anew: the next start uses those.
        db.execute("UPDATE jobs SET request = ? WHERE id = ?", (request.model_dump_json(), job.id))
        if origin is Origin.SYNC:
            self._want(db, [job.id], WANTED_S)
        elif job.origin is Origin.SYNC or origin is Origin.ASYNC:
            # Somebody wants it who does not wait on a connection: a disconnect no longer ends it,
            # nor an orchestrator that takes its claim back.
            db.execute("UPDATE jobs SET origin = ? WHERE id = ?", (Origin.ASYNC, job.id))

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

    def _want(self, db: sqlite3.Connection, job_ids: Iterable[str], seconds: float) -> None:
        db.execute(
            "UPDATE jobs SET wanted_until = ? WHERE id IN (SELECT value FROM json_each(?))",
            (self._clock() + seconds, json.dumps(list(job_ids))),
        )

    def _end_unwanted(self, db: sqlite3.Connection, only: str | None) -> list[str]:
        outcome = rows.outcome_json(CANCELLED)
        values = {"now": self._clock(), "outcome": outcome, "only": only}
        return [row["id"] for row in db.execute(rows.END_UNWANTED, values).fetchall()]
