"""Workers: what they say, what they hold, and when they have lost it."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from orchestrator.store import statements
from orchestrator.store.changes import Row, interrupt
from orchestrator.store.database import Transaction
from orchestrator.store.states import PUBLISHING, AttemptEnd, JobState
from orchestrator.store.tables import jobs, workers
from orchestrator.store.values import (
    AttemptName,
    Beat,
    BeatAnswer,
    ListedJob,
    Rules,
    Worker,
    WorkerFacts,
)

UNLISTED_LIMIT = 2  # heartbeats in a row that do not list a job which is leased here
SILENT = "The worker was silent for longer than its lease."
TOO_LONG = "The worker had the job for longer than one attempt may take."
UNLISTED = "The worker does not have the job: the answer to its claim was lost, or it restarted."

KNOWN = (
    workers.c.id,
    workers.c.worker_type,
    workers.c.provider,
    workers.c.gpu_class,
    workers.c.capabilities,
    workers.c.is_drained,
)
"""What calls of a worker have to know of it."""


def touch(tx: Transaction, facts: WorkerFacts, **columns: object) -> Row:
    """Store what a worker says, and that it was heard of now. Return what is `KNOWN` of it.

    What this call does not say (None) stays as it is.
    """
    said = {
        "worker_type": facts.worker_type,
        "provider": facts.provider,
        "gpu_class": facts.gpu_class,
        "capacity": facts.capacity,
        "system_info": dict(facts.system_info) if facts.system_info else None,
        "capabilities": dict(facts.capabilities) if facts.capabilities else None,
    }
    heard = {"seen_at": tx.now, "left_at": None, "left_because": None, **columns}
    told = {**{name: value for name, value in said.items() if value is not None}, **heard}
    first = {"id": facts.id, "first_seen_at": tx.now, "is_drained": False}
    defaults = {"capacity": 1, "status": "idle"}
    insert = tx.insert(workers)
    statement = insert.on_conflict_do_update(
        index_elements=["id"], set_={name: insert.excluded[name] for name in told}
    ).returning(*KNOWN)
    return tx.execute(statement, **{**first, **defaults, **told}).mappings().one()


def beat(tx: Transaction, heard: Beat, rules: Rules) -> BeatAnswer:
    """Renew the leases of the jobs that a heartbeat lists.

    A job that is leased to the worker and that two heartbeats in a row do not list goes back to the
    queue. Jobs that the worker lists and has lost are the answer's `cancel`.
    """
    status = "busy" if heard.is_busy else "idle"
    worker = touch(tx, heard.worker, status=status, error=heard.error)
    held = tx.execute(statements.LOCK_HELD_JOBS, worker_id=heard.worker.id).mappings().all()
    for row in held:
        if row["phase"] == PUBLISHING:
            continue
        if _is_listed(row, heard):
            tx.execute(statements.RENEW_LEASE, job_id=row["id"], until=renewed(tx, row, rules))
        elif tx.now - row["leased_at"] >= rules.listing_grace_s:
            _count_unlisted(tx, row, rules)
    unheld = [job for job in heard.jobs or () if job.job_id not in {row["id"] for row in held}]
    lost = tuple(job.job_id for job in unheld if _is_lost(tx, heard.worker.id, job))
    return BeatAnswer(lost, worker["is_drained"])


def goodbye(tx: Transaction, worker_id: str, reason: str, rules: Rules) -> int:
    """Take leave of a worker. Return how many of its jobs go back to the queue."""
    said = {"left_at": tx.now, "left_because": reason, "status": "idle"}
    tx.execute(workers.update().where(workers.c.id == worker_id).values(said))
    rows = tx.execute(statements.LOCK_HELD_JOBS, worker_id=worker_id).mappings().all()
    held = [row for row in rows if row["phase"] != PUBLISHING]
    for row in held:
        interrupt(tx, row, rules, f"The worker ended: {reason}")
    return len(held)


def expire(tx: Transaction, rules: Rules, *, at_most: int = 200) -> tuple[AttemptName, ...]:
    """Return to the queue the jobs whose workers have been silent. Return the lost attempts."""
    expired = tx.execute(statements.LOCK_EXPIRED_JOBS, now=tx.now, at_most=at_most).mappings().all()
    for row in expired:
        is_long = tx.now - row["leased_at"] >= rules.max_attempt_s
        interrupt(tx, row, rules, TOO_LONG if is_long else SILENT)
    return tuple(AttemptName(row["id"], row["worker_id"], row["attempt"]) for row in expired)


def renewed(tx: Transaction, row: Row, rules: Rules) -> float:
    """Return until when a lease is renewed now. No attempt holds a job for ever."""
    return float(min(tx.now + rules.lease_s, row["leased_at"] + rules.max_attempt_s))


def drain(tx: Transaction, worker_id: str, *, is_drained: bool) -> bool:
    """Let a worker claim nothing more, or again. Return whether it is known."""
    statement = workers.update().where(workers.c.id == worker_id).values(is_drained=is_drained)
    return tx.execute(statement).rowcount > 0


def listed(tx: Transaction, rules: Rules, *, at_most: int) -> tuple[Worker, ...]:
    """Return the workers that were heard of last."""
    held = held_jobs()
    statement = (
        sa.select(workers, sa.func.coalesce(held.c.held, 0).label("held"))
        .outerjoin(held, held.c.worker_id == workers.c.id)
        .order_by(workers.c.seen_at.desc(), workers.c.id)
        .limit(at_most)
    )
    return tuple(worker_of(tx, row, rules) for row in tx.execute(statement).mappings())


def held_jobs() -> sa.Subquery:
    """Return a query of how many jobs each worker holds: `worker_id` and `held`."""
    return (
        sa.select(jobs.c.worker_id, sa.func.count().label("held"))
        .where(jobs.c.state == JobState.RUNNING)
        .group_by(jobs.c.worker_id)
        .subquery()
    )


def worker_of(tx: Transaction, row: Row, rules: Rules) -> Worker:
    """Return a row of `workers` with the column `held`."""
    is_online = row["left_at"] is None and tx.now - row["seen_at"] <= rules.lease_s
    names: Iterable[str] = set(Worker.__dataclass_fields__) - {"is_online"}
    return Worker(**{name: row[name] for name in names}, is_online=is_online)


def _is_listed(row: Row, heard: Beat) -> bool:
    if heard.jobs is not None:
        return any(
            job.job_id == row["id"] and job.attempt in (None, row["attempt"]) for job in heard.jobs
        )
    # The predecessor's workers say which job they run, or only that they run some.
    return heard.is_busy and heard.current_job_id in (None, row["id"])


def _count_unlisted(tx: Transaction, row: Row, rules: Rules) -> None:
    count = row["unlisted"] + 1
    if count >= UNLISTED_LIMIT:
        interrupt(tx, row, rules, UNLISTED)
    else:
        tx.execute(statements.UPDATE_JOB, job_id=row["id"], unlisted=count)


def _is_lost(tx: Transaction, worker_id: str, job: ListedJob) -> bool:
    """Return whether the worker had the job and lost it, other than by reporting its end."""
    by_number = statements.ATTEMPT_BY_NUMBER, {"job_id": job.job_id, "number": job.attempt}
    latest = statements.LATEST_ATTEMPT_OF, {"job_id": job.job_id, "worker_id": worker_id}
    statement, values = latest if job.attempt is None else by_number
    attempt = tx.execute(statement, **values).mappings().one_or_none()
    if attempt is None or attempt["worker_id"] != worker_id or attempt["ending"] is None:
        return False
    return not AttemptEnd(attempt["ending"]).is_reported
