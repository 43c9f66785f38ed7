"""What the attempts of an ingress do with jobs: take, beat, finish, put back; and how jobs end
without them.

Each attempt is a worker of its own to the store: its `worker_id` is the id of the attempt. All
functions run inside a transaction of the caller.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from orchestrator.store.changes import FREE, add_event, append_event, change_state, end_attempt
from orchestrator.store.database import Transaction
from orchestrator.store.states import AttemptEnd, Change, JobState
from orchestrator.store.tables import attempts
from orchestrator.store.values import Failure as StoredFailure
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.jobs import rows, statements
from serve_app.jobs.job import ABANDONED, CANCELLED, Job, Origin

# The next owner of the worker identity resumes a claimed job. A restart takes less than this.
CLAIM_GRACE_S = 120.0
WAITING = rows.progress_columns(Progress(Phase.QUEUED, 0.0))


def take(
    tx: Transaction,
    lease_s: float,
    max_attempts: int,
    only: str | None,
    active: Collection[str],
) -> Job | None:
    """Start a lost job or the oldest of the queue, or the job `only`; None if there is none."""
    row = _startable(tx, max_attempts, only, active)
    if row is None:
        return None
    if row["state"] == JobState.RUNNING:
        _put_back(tx, row, "The attempt was silent for longer than its lease.")
        row = _locked(tx, row["id"])
    before = tx.execute(
        statements.ATTEMPT_BEFORE, job_id=row["id"], number=row["attempt"], run=row["run"]
    ).scalar()
    attempt_id, number = uuid.uuid4().hex, row["attempt"] + 1
    held = {
        "attempt": number,
        "worker_id": attempt_id,
        "leased_at": tx.now,
        "lease_until": tx.now + lease_s,
    }
    change_state(tx, row, Change.CLAIM, **WAITING, **held)
    tx.execute(
        attempts.insert(),
        job_id=row["id"],
        number=number,
        run=row["run"],
        worker_id=attempt_id,
        worker_type="ingress",
        started_at=tx.now,
    )
    add_event(tx, row, "claimed", attempt=number)
    return rows.job_of(_locked(tx, row["id"]), lost_attempt_id=before)


def beat(
    tx: Transaction, job: Job, lease_s: float, progress: Progress, phases: Sequence[Progress]
) -> Any:
    """Renew an attempt's lease, and store its progress. Return what its callers wish, as a row;
    None if the attempt has lost the job.
    """
    values = {
        "job_id": job.id,
        "attempt_id": job.attempt_id,
        "now": tx.now,
        "until": tx.now + lease_s,
        "fraction": progress.fraction,
        "to_phase": progress.phase,
        "to_counts": rows.counts_of(progress),
    }
    if tx.execute(statements.BEAT, **values).rowcount == 0:
        return None
    _add_phases(tx, job, phases)
    return tx.execute(statements.WISHES, job_id=job.id).mappings().one()


def finish(
    tx: Transaction, job: Job, outcome: Outcome, progress: Progress, phases: Sequence[Progress]
) -> bool:
    """Store an attempt's outcome. Return False if the attempt has lost the job."""
    row = _locked_attempt(tx, job)
    if row is None:
        return False
    _add_phases(tx, job, phases)
    columns = rows.ended_columns(outcome, progress)
    if isinstance(outcome, Success):
        values = {"run_warnings": list(outcome.warnings)}
        tx.execute(statements.UPDATE_INGRESS_JOB.values(values), of_job=job.id)
    _end(tx, row, outcome, columns)
    return True


def put_back(tx: Transaction, job: Job, *, if_client_is_back: bool) -> bool:
    """Queue a running attempt's job again, as if it had never been started; see the registry."""
    row = _locked_attempt(tx, job)
    if row is None or (if_client_is_back and not _is_wanted(row, tx.now)):
        return False
    _put_back(tx, row, "The attempt was put back.")
    values = {"uncounted": row["uncounted"] + 1}
    tx.execute(statements.UPDATE_INGRESS_JOB.values(values), of_job=job.id)
    return True


def cancel(tx: Transaction, job_id: str) -> bool:
    """Cancel a job, at once if it is queued. Return whether it had not ended yet."""
    row = tx.execute(statements.LOCK_ONE, job_id=job_id).mappings().one_or_none()
    if row is None or JobState(row["state"]).is_terminal:
        return False
    tx.execute(statements.UPDATE_INGRESS_JOB.values(cancel_requested=True), of_job=job_id)
    if row["state"] == JobState.QUEUED:
        _end(tx, row, CANCELLED, rows.failed_columns(CANCELLED))
    return True


def cancel_unwanted(tx: Transaction) -> list[str]:
    """End the queued jobs that were cancelled or that nobody waits for. Return their ids."""
    unwanted = tx.execute(statements.TO_CANCEL, now=tx.now).mappings().all()
    for row in unwanted:
        _end(tx, row, CANCELLED, rows.failed_columns(CANCELLED))
    return [row["id"] for row in unwanted]


def abandon(tx: Transaction, max_attempts: int, active: Collection[str]) -> list[str]:
    """End the jobs that were started too often or whose claim nobody resumes. Return their ids."""
    before = tx.now - CLAIM_GRACE_S
    worn_out = tx.execute(
        statements.but_not(statements.WORN_OUT, active),
        now=tx.now,
        max_attempts=max_attempts,
        claimed_before=before,
    )
    left = tx.execute(statements.but_not(statements.LEFT_CLAIMS, active), claimed_before=before)
    abandoned = [*worn_out.mappings(), *left.mappings()]
    for row in abandoned:
        _end(tx, row, ABANDONED, rows.failed_columns(ABANDONED))
    return [row["id"] for row in abandoned]


def _startable(
    tx: Transaction, max_attempts: int, only: str | None, active: Collection[str]
) -> Any:
    values: dict[str, object] = {"max_attempts": max_attempts}
    if only is not None:
        if only in active:
            return None
        found = tx.execute(statements.THIS_ONE, job_id=only, now=tx.now, **values)
        return found.mappings().one_or_none()
    lost = tx.execute(statements.but_not(statements.FIRST_LOST, active), now=tx.now, **values)
    row = lost.mappings().one_or_none()
    if row is not None:
        return row
    queued = tx.execute(statements.but_not(statements.FIRST_QUEUED, active), **values)
    return queued.mappings().one_or_none()


def _locked(tx: Transaction, job_id: str) -> Any:
    return tx.execute(statements.LOCK_ONE, job_id=job_id).mappings().one()


def _locked_attempt(tx: Transaction, job: Job) -> Any:
    found = tx.execute(statements.LOCK_ATTEMPT, job_id=job.id, attempt_id=job.attempt_id)
    return found.mappings().one_or_none()


def _is_wanted(row: Any, now: float) -> bool:
    """Return whether a client has come back, or the job was promised to somebody meanwhile."""
    is_awaited = row["origin"] == Origin.ASYNC or row["wanted_until"] >= now
    return is_awaited and not row["cancel_requested"]


def _put_back(tx: Transaction, row: Any, reason: str) -> None:
    end_attempt(tx, row, AttemptEnd.INTERRUPTED, StoredFailure(reason))
    change_state(tx, row, Change.RETURN, **WAITING, **FREE)
    add_event(tx, row, "returned", reason=reason)


def _end(tx: Transaction, row: Any, outcome: Outcome, columns: dict[str, Any]) -> None:
    """End a job by the table of states: whatever the input is at fault for is for good."""
    change, ending, kind = Change.SUCCEED, AttemptEnd.SUCCEEDED, "succeeded"
    facts: dict[str, object] = {}
    if isinstance(outcome, Failure):
        facts = {"error": outcome.error_message}
        change, ending, kind = _ending_of(outcome)
    if row["state"] == JobState.RUNNING:
        told = StoredFailure(str(facts["error"])) if facts else None
        end_attempt(tx, row, ending, told)
    change_state(tx, row, change, **columns, **FREE)
    add_event(tx, row, kind, **facts)


def _ending_of(failure: Failure) -> tuple[Change, AttemptEnd, str]:
    if failure.cancelled:
        return Change.CANCEL, AttemptEnd.CANCELLED, "cancelled"
    if failure.status_code < 500:
        return Change.REJECT, AttemptEnd.REJECTED, "failed"
    # There is no other machine here that could try it.
    is_given_up = failure.code == ABANDONED.code
    return Change.BURY, AttemptEnd.INTERRUPTED if is_given_up else AttemptEnd.FAILED, "dead"


def _add_phases(tx: Transaction, job: Job, phases: Sequence[Progress]) -> None:
    for progress in phases:
        append_event(tx, job.id, job.number, "phase", rows.phase_facts(progress))
