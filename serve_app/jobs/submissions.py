"""How a submission enters the tables: as a new job, or by joining one that is there already.

Several callers may submit the same job. Each webhook is called once, each idempotency key finds the
job later, and the job shows the metadata of all callers. Their numbers are bounded.

All functions run inside a transaction of the caller.
"""

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.jobs import rows
from serve_app.jobs.job import TERMINAL, Job, Origin, SubmissionOptions, TooManyJoined, content_key

KEEP_ALIVE_S = 5.0  # an open connection renews its job's keep-alive well within this
MAX_SUBSCRIBERS = 16  # webhooks of one job
MAX_KEYS = 64  # idempotency keys of one job
MAX_METADATA_CHARS = 64 * 1024  # of all callers of one job together
MAX_WARNINGS = 32


def find(db: sqlite3.Connection, job_id: str, idempotency_key: str | None) -> Any:
    """Return the row of the key's job, else that of the id; None if there is neither."""
    if idempotency_key is not None:
        query = "SELECT job_id FROM idempotency_keys WHERE key = ?"
        found = db.execute(query, (idempotency_key,)).fetchone()
        if found is not None:
            return rows.get(db, found["job_id"])
    return rows.get(db, job_id)


def may_run_again(row: sqlite3.Row, gone: Job | None) -> bool:
    """Return whether a submission starts the stored job again instead of joining it.

    `gone` is a job that succeeded and whose output no longer exists.
    """
    if row["status"] in ("failed", "cancelled"):
        return True
    is_gone = gone is not None and (row["id"], row["run"]) == (gone.id, gone.run)
    return is_gone and row["status"] in TERMINAL


def enter(
    db: sqlite3.Connection,
    request: JobRequest,
    origin: Origin,
    submission: SubmissionOptions,
    now: float,
) -> None:
    """Queue a job, or the next run of one that has ended."""
    job_id = request.musetalk_job_id
    values = {
        "id": job_id,
        "request": request.model_dump_json(),
        "content_key": content_key(request),
        "origin": origin,
        "now": now,
        "wanted_until": now + KEEP_ALIVE_S,
        "progress": rows.progress_json(Progress(Phase.QUEUED, 0.0)),
        "metadata": None if submission.metadata is None else json.dumps(submission.metadata),
        "warnings": json.dumps(submission.warnings),
        "queue_job_id": submission.queue_job_id,
    }
    db.execute(rows.ENTER, values)
    db.execute("DELETE FROM phases WHERE job_id = ?", (job_id,))
    # Webhooks that were called for the previous end are done. The others wait for the next end.
    db.execute("DELETE FROM subscribers WHERE job_id = ? AND notified", (job_id,))


def join(
    db: sqlite3.Connection,
    row: sqlite3.Row,
    request: JobRequest,
    origin: Origin,
    submission: SubmissionOptions,
    now: float,
) -> None:
    """Add one more caller to a job. The job keeps what each of them sent."""
    job = rows.job_of(row)
    metadata = merged(job.metadata, submission.metadata)
    warnings = tuple(dict.fromkeys(job.warnings + submission.warnings))[:MAX_WARNINGS]
    db.execute(
        "UPDATE jobs SET metadata = ?, warnings = ?, queue_job_id = coalesce(?, queue_job_id) "
        "WHERE id = ?",
        (
            None if metadata is None else json.dumps(metadata),
            json.dumps(warnings),
            submission.queue_job_id,
            job.id,
        ),
    )
    if job.is_terminal:
        return
    # The content is the same, but its addresses may be signed again. The next start uses those.
    db.execute("UPDATE jobs SET request = ? WHERE id = ?", (request.model_dump_json(), job.id))
    if origin is Origin.SYNC:
        keep_alive(db, [job.id], now + KEEP_ALIVE_S)
    elif job.origin is Origin.SYNC or origin is Origin.ASYNC:
        # This caller does not wait on a connection. From now on neither a disconnect nor an
        # orchestrator that takes its claim back ends the job.
        db.execute("UPDATE jobs SET origin = ? WHERE id = ?", (Origin.ASYNC, job.id))


def keep_alive(db: sqlite3.Connection, job_ids: Iterable[str], until: float) -> None:
    """Store until when connections keep these jobs alive, in Unix seconds."""
    db.execute(rows.KEEP_ALIVE, (until, json.dumps(list(job_ids))))


def subscribe(db: sqlite3.Connection, job_id: str, submission: SubmissionOptions) -> None:
    """Store a submission's idempotency key and webhook with the job, each once.

    Raises:
        TooManyJoined: the caller has to roll the transaction back.
    """
    if submission.idempotency_key is not None:
        db.execute(
            "INSERT OR REPLACE INTO idempotency_keys (key, job_id) VALUES (?, ?)",
            (submission.idempotency_key, job_id),
        )
        _check_number(db, "idempotency_keys", job_id, MAX_KEYS)
    if submission.webhook_url is not None:
        metadata = None if submission.metadata is None else json.dumps(submission.metadata)
        db.execute(
            "INSERT OR IGNORE INTO subscribers (job_id, webhook_url, metadata) VALUES (?, ?, ?)",
            (job_id, submission.webhook_url, metadata),
        )
        _check_number(db, "subscribers", job_id, MAX_SUBSCRIBERS)


def _check_number(db: sqlite3.Connection, table: str, job_id: str, limit: int) -> None:
    query = f"SELECT count(*) FROM {table} WHERE job_id = ?"
    if db.execute(query, (job_id,)).fetchone()[0] > limit:
        raise TooManyJoined(job_id)


def merged(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return both, with the values of the first. If both are too long, return the first alone."""
    if not second:
        return first
    both = {**second, **(first or {})}
    return first if first and len(json.dumps(both)) > MAX_METADATA_CHARS else both
