"""What workers do with jobs: claim, report progress, report the end.

A report counts only if its attempt still holds the job. Numbers of attempts never fall, so an
attempt that has lost the job can neither report progress nor overwrite a result. A final report
that has been accepted may be sent again, because its answer may have been lost.
"""

from __future__ import annotations

import uuid
from enum import StrEnum

from orchestrator.store import statements
from orchestrator.store.changes import FREE, Row, add_event, change_state, end_attempt, interrupt
from orchestrator.store.database import Transaction
from orchestrator.store.errors import AttemptGone, JobNotFound, WorkerDrained
from orchestrator.store.jobs import job_of
from orchestrator.store.learning import frames_of, learn
from orchestrator.store.queue import charge_client, ranked
from orchestrator.store.states import PUBLISHING, AttemptEnd, Change, JobState
from orchestrator.store.tables import attempts
from orchestrator.store.values import (
    AttemptName,
    Completion,
    Failure,
    Job,
    Lease,
    Progress,
    Rules,
    WorkerFacts,
)
from orchestrator.store.workers import renewed, touch

MAX_TRIES = 50  # jobs that others may be claiming at the same moment


class FailureKind(StrEnum):
    """What a failure means for the job."""

    INPUT = "input"  # it ends, at once and for good
    PROCESSING = "processing"  # another machine may do it
    INTERRUPTION = "interruption"  # nothing is wrong with it


def claim(tx: Transaction, worker: WorkerFacts, rules: Rules) -> Lease | None:
    """Lease the best queued job to a worker; None if there is none for it.

    Raises:
        WorkerDrained: the worker may claim nothing more.
    """
    known = touch(tx, worker)
    if known["is_drained"]:
        raise WorkerDrained(worker.id)
    best, accounts = ranked(tx, known, rules)
    for job in best[:MAX_TRIES]:
        held = {"by_worker": known["id"], "at": tx.now, "until": tx.now + rules.lease_s}
        claimed = tx.execute(statements.CLAIM_JOB, job_id=job.job_id, **held)
        row = claimed.mappings().one_or_none()
        if row is not None:
            lease = _lease(tx, row, known, rules)
            charge_client(tx, job, accounts)
            return lease
    return None


def progress(tx: Transaction, name: AttemptName, report: Progress, rules: Rules) -> None:
    """Store the progress of a running attempt, which also renews its lease.

    Raises:
        AttemptGone, JobNotFound: the worker has to stop the job.
    """
    if _goes_on(tx, name, report, rules):
        return
    row, attempt = _lock(tx, name)
    _require_current(row, attempt)
    if row["phase"] == PUBLISHING:
        return  # the report was overtaken by the final one
    values = {
        "progress": max(row["progress"], report.fraction),
        "phase": report.phase,
        "counts": dict(report.counts) if report.counts else row["counts"],
        "frames": frames_of(report.counts) or row["frames"],
        "lease_until": renewed(tx, row, rules),
        "unlisted": 0,
        "updated_at": tx.now,
    }
    tx.execute(statements.UPDATE_JOB, job_id=row["id"], **values)
    if report.phase != row["phase"]:
        add_event(tx, row, "phase", phase=report.phase)


def _goes_on(tx: Transaction, name: AttemptName, report: Progress, rules: Rules) -> bool:
    """Store a report that only says how far its attempt is, as most do, in one exchange.

    Return False, and store nothing, if it says more, or if the attempt does not hold the job.
    """
    if None in (name.job_id, name.worker_id, name.number):
        return False
    counted, statement = {}, statements.GO_ON
    if report.counts:
        counted = {"counts": dict(report.counts), "frames": frames_of(report.counts)}
        statement = statements.GO_ON_COUNTING
    stored = tx.execute(
        statement,
        of_job=name.job_id,
        of_worker=name.worker_id,
        of_number=name.number,
        in_phase=report.phase,
        fraction=report.fraction,
        at=tx.now,
        until=tx.now + rules.lease_s,
        max_attempt_s=rules.max_attempt_s,
        **counted,
    )
    return stored.rowcount == 1


def begin_publishing(tx: Transaction, name: AttemptName, rules: Rules) -> Job:
    """Hold the job of a running attempt that has reported its success, until `finish`.

    Meanwhile the service holds the lease, whatever its worker does. If it ends in the middle, the
    worker repeats the report, or the job returns to the queue when that lease is over.

    Return the job, which has succeeded if the report had been accepted before.

    Raises:
        AttemptGone, JobNotFound: the result is not this worker's to report.
    """
    row, attempt = _lock(tx, name)
    if attempt["ending"] == AttemptEnd.SUCCEEDED:
        return job_of(row)
    _require_current(row, attempt)
    held = {"phase": PUBLISHING, "lease_until": tx.now + rules.publish_lease_s, "unlisted": 0}
    tx.execute(statements.UPDATE_JOB, job_id=row["id"], **held)
    if row["phase"] != PUBLISHING:
        add_event(tx, row, "phase", phase=PUBLISHING)
    return job_of(row)


def finish(tx: Transaction, name: AttemptName, result: Completion) -> bool:
    """Accept the result of a running attempt. Return False if it had been accepted before.

    Raises:
        AttemptGone, JobNotFound: the result is not this worker's to report.
    """
    row, attempt = _lock(tx, name)
    if attempt["ending"] == AttemptEnd.SUCCEEDED:
        return False
    _require_current(row, attempt)
    learn(tx, row, attempt, result)
    end_attempt(tx, row, AttemptEnd.SUCCEEDED)
    columns = {
        "output_url": result.output_url,
        "metrics": dict(result.metrics),
        "receipt": dict(result.receipt) if result.receipt else None,
        "progress": 1.0,
        "phase": "completed",
        "error": None,
        "failure": None,
        "published_attempt": result.published_attempt,
    }
    change_state(tx, row, Change.SUCCEED, **columns, **FREE)
    add_event(tx, row, "succeeded", worker_id=row["worker_id"])
    return True


def fail(
    tx: Transaction, name: AttemptName, failure: Failure, kind: FailureKind, rules: Rules
) -> bool:
    """Store the failure of a running attempt. Return False if it had been stored before.

    Raises:
        AttemptGone, JobNotFound: the failure is not this worker's to report.
    """
    row, attempt = _lock(tx, name)
    if attempt["ending"] in (AttemptEnd.REJECTED, AttemptEnd.FAILED):
        return False
    _require_current(row, attempt)
    if kind is FailureKind.INTERRUPTION:
        interrupt(tx, row, rules, failure.error)
    elif kind is FailureKind.INPUT:
        end_attempt(tx, row, AttemptEnd.REJECTED, failure)
        change_state(tx, row, Change.REJECT, phase="failed", **_told(failure), **FREE)
        add_event(tx, row, "failed", error=failure.error)
    else:
        _fail_here(tx, row, failure, rules)
    return True


def _fail_here(tx: Transaction, row: Row, failure: Failure, rules: Rules) -> None:
    end_attempt(tx, row, AttemptEnd.FAILED, failure)
    count = row["failures"] + 1
    told = {**_told(failure), "failures": count}
    if count >= rules.max_failures:
        change_state(tx, row, Change.BURY, phase="failed", **told, **FREE)
        add_event(tx, row, "dead", error=failure.error)
        return
    fresh = {"progress": 0.0, "phase": "queued", "counts": None}
    change_state(tx, row, Change.RETURN, **fresh, **told, **FREE)
    add_event(tx, row, "attempt_failed", error=failure.error, worker_id=row["worker_id"])


def _told(failure: Failure) -> dict[str, object]:
    return {
        "error": failure.error,
        "failure": dict(failure.facts) if failure.facts else None,
    }


def _lease(tx: Transaction, row: Row, known: Row, rules: Rules) -> Lease:
    """Begin the attempt of a job that has just been given to a worker."""
    buffer_job_id = uuid.uuid4().hex if known["worker_type"] == "buffer" else None
    tx.execute(
        attempts.insert(),
        job_id=row["id"],
        number=row["attempt"],
        run=row["run"],
        buffer_job_id=buffer_job_id,
        worker_id=known["id"],
        worker_type=known["worker_type"],
        gpu_class=known["gpu_class"],
        started_at=tx.now,
        uploads_until=None if rules.upload_s is None else tx.now + rules.upload_s,
    )
    add_event(tx, row, "claimed", worker_id=known["id"])
    return Lease(job_of(row), row["attempt"], rules.lease_s, buffer_job_id)


def _lock(tx: Transaction, name: AttemptName) -> tuple[Row, Row]:
    """Return the job, locked, and the attempt that a report is about.

    Raises:
        JobNotFound: there is no such job.
        AttemptGone: the worker has no such attempt.
    """
    job_id, number = name.job_id, name.number
    if name.buffer_job_id is not None:
        found = tx.execute(statements.ATTEMPT_BY_BUFFER_ID, buffer_job_id=name.buffer_job_id)
        known = found.mappings().one_or_none()
        if known is None:
            raise JobNotFound("there is no such buffer job")
        if number is not None and number != known["number"]:
            raise AttemptGone("the attempt is not the buffer job's")
        job_id, number = known["job_id"], known["number"]
    row = tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one_or_none()
    if row is None:
        raise JobNotFound("there is no such job")
    # Read after the lock, so that its ending is the newest.
    by_number = statements.ATTEMPT_BY_NUMBER, {"job_id": job_id, "number": number}
    latest = statements.LATEST_ATTEMPT_OF, {"job_id": job_id, "worker_id": name.worker_id}
    statement, values = latest if number is None else by_number
    attempt = tx.execute(statement, **values).mappings().one_or_none()
    if attempt is None or name.worker_id not in (None, attempt["worker_id"]):
        raise AttemptGone("the job is another worker's")
    return row, attempt


def _require_current(row: Row, attempt: Row) -> None:
    if row["state"] != JobState.RUNNING or row["attempt"] != attempt["number"]:
        raise AttemptGone(f"the attempt has ended, and the job is {row['state']}")
