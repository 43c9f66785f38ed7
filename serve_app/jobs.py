"""The job registry: every job of this ingress, however it came in, in one SQLite file.

A job's life:

    submit ─► queued ─► take ─► running ─► finish ─► succeeded | failed | cancelled
                 ▲                 │
                 └── lease expired ┘   (at most `max_attempts` starts)

A running attempt holds a lease that `beat` renews; an attempt that lost it may no longer write. A
job that a client waits for on an open connection (`origin` sync) is dropped when nobody wants it
any more.
"""

import hashlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve_app.schemas import Failure, JobRequest, JobStatus, Outcome, Phase, Progress, Success

WANTED_S = 5.0  # a waiting connection renews its wish well within this
# A claimed job is resumed by whoever speaks for its worker identity next; a restart takes less.
CLAIM_GRACE_S = 120.0
TERMINAL = ("succeeded", "failed", "cancelled")

SCHEMA_VERSION = 2  # counts up with every change of the columns
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, request TEXT NOT NULL, content_key TEXT NOT NULL, origin TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, attempt_id TEXT, lost_attempt_id TEXT,
    lease_until REAL, wanted_until REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0, progress TEXT NOT NULL, outcome TEXT,
    webhook_url TEXT, notified INTEGER NOT NULL DEFAULT 0, metadata TEXT,
    idempotency_key TEXT UNIQUE, warnings TEXT NOT NULL DEFAULT '[]', queue_job_id TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, created);
"""

# -- take_job --  Lease the oldest queued job, or one whose attempt fell silent.
TAKE = """
UPDATE jobs SET status = 'running', attempt = attempt + 1, lost_attempt_id = attempt_id,
                attempt_id = :attempt_id, lease_until = :now + :lease_s, updated = :now
 WHERE id = (SELECT id FROM jobs
              WHERE (status = 'queued' OR (status = 'running' AND lease_until < :now))
                AND attempt < :max_attempts AND (:only IS NULL OR id = :only)
                AND (:only IS NOT NULL OR origin <> 'claimed')
              ORDER BY created, id LIMIT 1)
RETURNING *
"""

# -- fail_abandoned --  Too many starts; or claimed by an ingress that died and was not resumed.
FAIL_ABANDONED = """
UPDATE jobs SET status = 'failed', outcome = :outcome, lease_until = NULL, updated = :now
 WHERE (status = 'running' AND attempt >= :max_attempts AND lease_until < :now)
    OR (status = 'running' AND origin = 'claimed' AND lease_until < :now - :claim_grace_s)
    OR (status = 'queued' AND origin = 'claimed' AND updated < :now - :claim_grace_s)
RETURNING id
"""

# -- end_unwanted --  Waiting jobs that were cancelled, or whose client went away.
END_UNWANTED = """
UPDATE jobs SET status = 'cancelled', outcome = :outcome, lease_until = NULL, updated = :now
 WHERE status = 'queued' AND (cancel_requested OR (origin = 'sync' AND wanted_until < :now))
RETURNING id
"""

# Ended for want of a client, but not cancelled, and a client (or the asynchronous API) came since.
WANTED_AGAIN = "NOT cancel_requested AND (origin = 'async' OR wanted_until >= :now)"


class Origin(StrEnum):
    """How a job came in, which decides who may end it."""

    SYNC = "sync"  # POST /generate: wanted while a connection waits
    ASYNC = "async"  # POST /v1/avatar/jobs: wanted until cancelled
    CLAIMED = "claimed"  # from the orchestrator: reported back by the attempt that claimed it


class Verdict(StrEnum):
    """What `beat` tells a running attempt."""

    GO_ON = "go_on"
    CANCELLED = "cancelled"
    LOST = "lost"


class JobConflict(Exception):
    """The id is taken by a job with different content. Choose another id."""


class QueueFull(Exception):
    """As many jobs wait as the configuration allows. Try again later."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the registry."""

    id: str
    request: JobRequest
    origin: Origin
    status: JobStatus
    created: float  # Unix seconds
    updated: float
    attempt: int
    attempt_id: str | None
    lost_attempt_id: str | None
    progress: Progress
    outcome: Outcome | None
    webhook_url: str | None
    metadata: dict[str, Any] | None
    warnings: tuple[str, ...]  # of the ticket; a success has the run's own beside them
    queue_job_id: str | None

    @property
    def is_terminal(self) -> bool:
        """Whether the outcome is final."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class Ticket:
    """What comes with a job beside its request.

    `warnings` are sentences about what was not understood and replaced by a default; they are
    given back in the answer. `queue_job_id` is the id that Salad's queue has for the job.
    """

    webhook_url: str | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()
    queue_job_id: str | None = None


class JobRegistry:
    """Every statement is one short transaction; callers on any thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            path, timeout=10.0, isolation_level=None, check_same_thread=False
        )
        path.chmod(0o600)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._make_tables()

    def _make_tables(self) -> None:
        """Create the table anew if it is of another version."""
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            # Jobs of an older worker ended with it: their callers ask again, and get done again.
            self._db.execute("DROP TABLE IF EXISTS jobs")
        self._db.executescript(SCHEMA)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file. The registry cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def submit(
        self, request: JobRequest, origin: Origin, max_queued: int, ticket: Ticket | None = None
    ) -> tuple[Job, bool]:
        """Enter a job, or join the one that has the same id and content; True if work is needed.

        A failed or cancelled job that comes again is queued again: what it lacked may be there now.

        Raises:
            JobConflict: the id, or the idempotency key, stands for different content.
            QueueFull: `max_queued` jobs wait already.
        """
        key = content_key(request)
        ticket = ticket or Ticket()
        with self._transaction() as db:
            row = self._find(db, request.musetalk_job_id, ticket.idempotency_key)
            if row is not None and row["content_key"] != key:
                raise JobConflict(request.musetalk_job_id)
            if row is not None and row["status"] not in ("failed", "cancelled"):
                self._join(db, row, origin)
                return _job(self._get(db, row["id"])), False
            waiting = db.execute("SELECT count(*) FROM jobs WHERE status = 'queued'").fetchone()[0]
            if waiting >= max_queued and origin is not Origin.CLAIMED:
                raise QueueFull
            job_id = request.musetalk_job_id if row is None else row["id"]
            self._enter(db, job_id, request, origin, ticket)
            return _job(self._get(db, job_id)), True

    def take(self, lease_s: float, max_attempts: int, only: str | None = None) -> Job | None:
        """Start the oldest job that can be started, or `only` that one; None if there is none."""
        values = {
            "attempt_id": uuid.uuid4().hex,
            "now": self._clock(),
            "lease_s": lease_s,
            "max_attempts": max_attempts,
            "only": only,
        }
        with self._transaction() as db:
            row = db.execute(TAKE, values).fetchone()
        return None if row is None else _job(row)

    def beat(self, job: Job, lease_s: float, progress: Progress) -> Verdict:
        """Renew an attempt's lease and store its progress."""
        now = self._clock()
        with self._transaction() as db:
            row = db.execute(
                "UPDATE jobs SET lease_until = ?, progress = ?, updated = ? "
                "WHERE id = ? AND attempt_id = ? AND status = 'running' "
                "RETURNING cancel_requested, origin, wanted_until",
                (now + lease_s, _progress_json(progress), now, job.id, job.attempt_id),
            ).fetchone()
        if row is None:
            return Verdict.LOST
        unwanted = row["origin"] == Origin.SYNC and row["wanted_until"] < now
        return Verdict.CANCELLED if row["cancel_requested"] or unwanted else Verdict.GO_ON

    def finish(self, job: Job, outcome: Outcome, progress: Progress) -> bool:
        """Store an attempt's outcome; False if the attempt is no longer the job's."""
        status: JobStatus = "succeeded"
        if isinstance(outcome, Failure):
            status = "cancelled" if outcome.cancelled else "failed"
        with self._transaction() as db:
            done = db.execute(
                "UPDATE jobs SET status = ?, outcome = ?, progress = ?, lease_until = NULL, "
                "updated = ? WHERE id = ? AND attempt_id = ? AND status = 'running'",
                (
                    status,
                    _outcome_json(outcome),
                    _progress_json(progress),
                    self._clock(),
                    job.id,
                    job.attempt_id,
                ),
            ).rowcount
        return bool(done)

    def requeue(self, job: Job, *, if_wanted: bool = False) -> bool:
        """Put a running attempt's job back, as if never started; the next `take` starts it.

        False if it stays: the attempt is no longer the job's, or, with `if_wanted`, nobody wants
        the job (any more, or again).
        """
        condition = WANTED_AGAIN if if_wanted else "TRUE"
        with self._transaction() as db:
            done = db.execute(
                "UPDATE jobs SET status = 'queued', attempt = attempt - 1, lease_until = NULL, "
                "updated = :now WHERE id = :id AND attempt_id = :attempt_id "
                f"AND status = 'running' AND {condition}",
                {"now": self._clock(), "id": job.id, "attempt_id": job.attempt_id},
            ).rowcount
        return bool(done)

    def cancel(self, job_id: str) -> Job | None:
        """Ask for a job's end: at once if it waits, at its next beat if it runs. None: unknown."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? "
                "AND status IN ('queued', 'running')",
                (job_id,),
            )
        self.sweep(max_attempts=1 << 30)
        return self.get(job_id)

    def want(self, job_id: str, seconds: float = WANTED_S) -> None:
        """Say that a connection waits for this job; 0 seconds: not any longer."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET wanted_until = ? WHERE id = ?", (self._clock() + seconds, job_id)
            )

    def get(self, job_id: str) -> Job | None:
        """Return a job, None if the id is unknown (or forgotten)."""
        with self._transaction() as db:
            row = self._get(db, job_id)
        return None if row is None else _job(row)

    def page(self, status: str | None, limit: int, before: tuple[float, str] | None) -> list[Job]:
        """Return the newest jobs first, at most `limit`, older than the `before` cursor."""
        created, job_id = before or (float("inf"), "")
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE (:status IS NULL OR status = :status) "
                "AND (created < :created OR (created = :created AND id < :id)) "
                "ORDER BY created DESC, id DESC LIMIT :limit",
                {"status": status, "created": created, "id": job_id, "limit": limit},
            ).fetchall()
        return [_job(row) for row in rows]

    def count(self, status: JobStatus) -> int:
        """Return how many jobs have that status."""
        with self._transaction() as db:
            query = "SELECT count(*) FROM jobs WHERE status = ?"
            return int(db.execute(query, (status,)).fetchone()[0])

    def sweep(self, max_attempts: int) -> list[str]:
        """End the jobs that can never be taken again; their ids."""
        values = {
            "now": self._clock(),
            "max_attempts": max_attempts,
            "claim_grace_s": CLAIM_GRACE_S,
        }
        with self._transaction() as db:
            unwanted = db.execute(
                END_UNWANTED, {**values, "outcome": _outcome_json(CANCELLED)}
            ).fetchall()
            abandoned = db.execute(
                FAIL_ABANDONED, {**values, "outcome": _outcome_json(ABANDONED)}
            ).fetchall()
        return [row["id"] for row in unwanted + abandoned]

    def forget(self, keep: int) -> None:
        """Drop the oldest finished jobs beyond `keep`."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs "
                "WHERE status IN ('succeeded', 'failed', 'cancelled') "
                "ORDER BY updated DESC LIMIT -1 OFFSET ?)",
                (keep,),
            )

    def take_news(self, limit: int) -> list[Job]:
        """Return ended jobs whose webhook has not been queued yet."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE webhook_url IS NOT NULL AND NOT notified "
                "AND status IN ('succeeded', 'failed', 'cancelled') ORDER BY updated LIMIT ?",
                (limit,),
            ).fetchall()
        return [_job(row) for row in rows]

    def mark_notified(self, job: Job) -> None:
        """Say that this end of a job has its webhook."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET notified = 1 WHERE id = ?", (job.id,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _get(self, db: sqlite3.Connection, job_id: str) -> Any:
        return db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()

    def _find(self, db: sqlite3.Connection, job_id: str, idempotency_key: str | None) -> Any:
        if idempotency_key is not None:
            query = "SELECT * FROM jobs WHERE idempotency_key = ?"
            row = db.execute(query, (idempotency_key,)).fetchone()
            if row is not None:
                return row
        return self._get(db, job_id)

    def _join(self, db: sqlite3.Connection, row: sqlite3.Row, origin: Origin) -> None:
        if origin is Origin.SYNC:
            db.execute(
                "UPDATE jobs SET wanted_until = ? WHERE id = ?",
                (self._clock() + WANTED_S, row["id"]),
            )
        elif row["origin"] == Origin.SYNC and row["status"] not in TERMINAL:
            # Somebody wants it who does not wait on a connection: a disconnect no longer ends it.
            db.execute("UPDATE jobs SET origin = ? WHERE id = ?", (Origin.ASYNC, row["id"]))

    def _enter(
        self,
        db: sqlite3.Connection,
        job_id: str,
        request: JobRequest,
        origin: Origin,
        ticket: Ticket,
    ) -> None:
        now = self._clock()
        db.execute(
            "INSERT OR REPLACE INTO jobs (id, request, content_key, origin, status, created, "
            "updated, wanted_until, progress, webhook_url, metadata, idempotency_key, warnings, "
            "queue_job_id) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job_id,
                request.model_dump_json(),
                content_key(request),
                origin,
                now,
                now,
                now + WANTED_S,
                _progress_json(Progress(Phase.QUEUED, 0.0)),
                ticket.webhook_url,
                None if ticket.metadata is None else json.dumps(ticket.metadata),
                ticket.idempotency_key,
                json.dumps(ticket.warnings),
                ticket.queue_job_id,
            ),
        )


CANCELLED = Failure(
    error_type="processing_error",
    error_message="The job was cancelled before it finished.",
    code="cancelled",
    stage="unknown",
    retryable=False,
    status_code=500,
    cancelled=True,
)
ABANDONED = Failure(
    error_type="processing_error",
    error_message="The worker was interrupted each time that it started this job. Send it again.",
    code="abandoned",
    stage="unknown",
    retryable=True,
    status_code=500,
)


def content_key(request: JobRequest) -> str:
    """Return a digest of all that decides the output, the job id excepted."""
    content = request.model_dump(mode="json", exclude={"musetalk_job_id"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _progress_json(progress: Progress) -> str:
    return json.dumps(asdict(progress))


def _outcome_json(outcome: Outcome) -> str:
    return json.dumps({"kind": type(outcome).__name__, **asdict(outcome)})


def _job(row: sqlite3.Row) -> Job:
    progress = json.loads(row["progress"])
    return Job(
        id=row["id"],
        request=JobRequest.model_validate_json(row["request"]),
        origin=Origin(row["origin"]),
        status=row["status"],
        created=row["created"],
        updated=row["updated"],
        attempt=row["attempt"],
        attempt_id=row["attempt_id"],
        lost_attempt_id=row["lost_attempt_id"],
        progress=Progress(**{**progress, "phase": Phase(progress["phase"])}),
        outcome=_outcome(row["outcome"]),
        webhook_url=row["webhook_url"],
        metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
        warnings=tuple(json.loads(row["warnings"])),
        queue_job_id=row["queue_job_id"],
    )


def _outcome(text: str | None) -> Outcome | None:
    if text is None:
        return None
    fields = json.loads(text)
    if fields.pop("kind") == "Success":
        return Success(**{**fields, "warnings": tuple(fields.get("warnings", ()))})
    return Failure(**fields)
