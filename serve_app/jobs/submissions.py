"""How a submission enters the store: as a new job, or by joining one that is there already.

The store itself decides what is new, what joins, and what conflicts. Several callers may submit the
same job: each webhook is called once, each idempotency key finds the job later, and the job shows
the metadata of all callers. Their numbers are bounded.

All functions run inside a transaction of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.store import batches, deliveries
from orchestrator.store import jobs as stored_jobs
from orchestrator.store.database import Transaction
from orchestrator.store.errors import TooManyWebhooks
from orchestrator.store.statements import UPDATE_JOB
from orchestrator.store.states import JobState
from orchestrator.store.tables import ingress_jobs
from orchestrator.store.values import NewJob, Rules
from serve_app.contract.requests import JobRequest
from serve_app.jobs import rows, statements
from serve_app.jobs.job import Job, Origin, SubmissionOptions, TooManyJoined
from serve_app.jobs.statements import CLAIMS, HERE

KEEP_ALIVE_S = 5.0  # an open connection renews its job's keep-alive well within this
MAX_KEYS = 64  # idempotency keys of one job
MAX_METADATA_CHARS = 64 * 1024  # of all callers of one job together
MAX_WARNINGS = 32


def find(tx: Transaction, job_id: str, idempotency_key: str | None) -> Any:
    """Return the row of the key's job, else that of the id; None if there is neither."""
    named = NewJob(job_id, HERE, "", "", idempotency_key=idempotency_key)
    known = stored_jobs.known_id(tx, named)
    return tx.execute(statements.READ_ONE, job_id=known).mappings().one_or_none()


def submit(
    tx: Transaction,
    request: JobRequest,
    origin: Origin,
    max_queued: int | None,
    submission: SubmissionOptions,
    gone: Job | None,
) -> tuple[Job, bool]:
    """Queue a job, or join the one with the same id or key; see the registry."""
    row = find(tx, request.musetalk_job_id, submission.idempotency_key)
    new = new_job(request, submission.metadata, CLAIMS if origin is Origin.CLAIMED else HERE)
    new = replace(new, priority=submission.priority)
    if row is not None:
        new = replace(new, id=row["id"], client=row["client"])
    # Jobs of batches have a limit of their own, and take no other job's place.
    limit = None if max_queued is None else max_queued + batches.count_waiting(tx)
    redo = row is not None and gone is not None and (row["id"], row["run"]) == (gone.id, gone.run)
    job, is_new = stored_jobs.submit(tx, new, Rules(max_queued=limit), redo=redo)
    if is_new:
        _enter(tx, job.id, job.attempt, origin, submission)
    else:
        _join(tx, row, origin, submission)
    _subscribe(tx, new, submission, is_new_run=is_new)
    stored = tx.execute(statements.READ_ONE, job_id=new.id).mappings().one()
    return rows.job_of(stored), is_new


def retry(tx: Transaction, job_id: str) -> Job:
    """Queue a job again that has ended without a result; see the registry."""
    job = stored_jobs.retry(tx, job_id, None)
    row = tx.execute(statements.LOCK_ONE, job_id=job_id).mappings().one()
    kept = SubmissionOptions(warnings=tuple(row["warnings"]), queue_job_id=row["queue_job_id"])
    _enter(tx, job_id, job.attempt, Origin.ASYNC, kept)
    return rows.job_of(tx.execute(statements.READ_ONE, job_id=job_id).mappings().one())


def new_job(request: JobRequest, metadata: Mapping[str, Any] | None, client: str) -> NewJob:
    """Return a request for the store."""
    return NewJob(
        id=request.musetalk_job_id,
        client=client,
        video_url=request.video_url,
        audio_url=request.audio_url,
        aspect_ratio=request.aspect_ratio,
        resolution=request.resolution,
        params=request.params.as_json(),
        metadata=metadata,
    )


def keep_alive(tx: Transaction, job_ids: Iterable[str], until: float) -> None:
    """Store until when connections keep these jobs alive, in Unix seconds."""
    if ids := list(job_ids):
        tx.execute(statements.KEEP_ALIVE, job_ids=ids, until=until)


def _enter(
    tx: Transaction, job_id: str, attempt: int, origin: Origin, submission: SubmissionOptions
) -> None:
    """Add what the ingress keeps of a new job, or of the next run of one that has ended."""
    fresh = {
        "origin": origin,
        "wanted_until": tx.now + KEEP_ALIVE_S,
        "cancel_requested": False,
        "uncounted": attempt,
        "queue_job_id": submission.queue_job_id,
        "warnings": list(submission.warnings),
        "run_warnings": [],
    }
    insert = tx.insert(ingress_jobs).values(job_id=job_id, **fresh)
    tx.execute(insert.on_conflict_do_update(index_elements=["job_id"], set_=fresh))
    _own(tx, job_id, origin)


def _join(tx: Transaction, row: Any, origin: Origin, submission: SubmissionOptions) -> None:
    """Add one more caller to a job. The job keeps what each of them sent."""
    metadata = merged(row["metadata"], submission.metadata)
    tx.execute(UPDATE_JOB.values(metadata=metadata), job_id=row["id"])
    warnings = [*dict.fromkeys((*row["warnings"], *submission.warnings))][:MAX_WARNINGS]
    kept: dict[str, object] = {
        "warnings": warnings,
        "queue_job_id": submission.queue_job_id or row["queue_job_id"],
    }
    if not JobState(row["state"]).is_terminal:
        if origin is Origin.SYNC:
            kept["wanted_until"] = tx.now + KEEP_ALIVE_S
        elif row["origin"] == Origin.SYNC or origin is Origin.ASYNC:
            # This caller does not wait on a connection. From now on neither a disconnect nor an
            # orchestrator that takes its claim back ends the job.
            kept["origin"] = Origin.ASYNC
            _own(tx, row["id"], Origin.ASYNC)
    tx.execute(statements.UPDATE_INGRESS_JOB.values(kept), of_job=row["id"])


def _own(tx: Transaction, job_id: str, origin: Origin) -> None:
    """Put a job into this ingress's own queue, or leave it to its claim."""
    client = CLAIMS if origin is Origin.CLAIMED else HERE
    tx.execute(UPDATE_JOB.values(client=client), job_id=job_id)


def _subscribe(
    tx: Transaction, new: NewJob, submission: SubmissionOptions, *, is_new_run: bool
) -> None:
    """Store a submission's idempotency key and webhook with the job, each once.

    Raises:
        TooManyJoined: the caller has to roll the transaction back.
    """
    if submission.idempotency_key is not None:
        named = replace(new, client=HERE, idempotency_key=submission.idempotency_key)
        stored_jobs.remember_key(tx, named, new.id)
        if (tx.execute(statements.COUNT_KEYS, job_id=new.id).scalar() or 0) > MAX_KEYS:
            raise TooManyJoined(new.id)
    if (url := submission.webhook_url) is not None:
        try:
            deliveries.subscribe(tx, new.id, url, submission.metadata, is_new_run=is_new_run)
        except TooManyWebhooks as exc:
            raise TooManyJoined(new.id) from exc


def merged(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return both, with the values of the first. If both are too long, return the first alone."""
    if not second:
        return first
    both = {**second, **(first or {})}
    return first if first and len(json.dumps(both)) > MAX_METADATA_CHARS else both
