"""The ingress's own statements about the tables of `orchestrator.store`.

The queue of an ingress has the jobs of `HERE`. Those of `CLAIMS` came from an orchestrator; only
their claim starts them, so they have no place in the queue.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from orchestrator.store.batches import IS_IN_OPEN_BATCH
from orchestrator.store.states import JobState
from orchestrator.store.tables import (
    attempts,
    batch_jobs,
    deliveries,
    events,
    idempotency_keys,
    ingress_jobs,
    jobs,
)
from serve_app.jobs.job import Origin

HERE, CLAIMS = "ingress", "orchestrator"
ENDED = tuple(state for state in JobState if state.is_terminal)

_both = jobs.join(ingress_jobs, ingress_jobs.c.job_id == jobs.c.id)
_columns = (*jobs.c, *(column for column in ingress_jobs.c if column.name != "job_id"))
# Only attempts that count: of this run, and not put back.
_started = jobs.c.attempt - ingress_jobs.c.uncounted
_id: sa.BindParameter[str] = sa.bindparam("job_id")
_of_job: sa.BindParameter[str] = sa.bindparam("of_job")  # where `job_id` names a column
_now: sa.BindParameter[float] = sa.bindparam("now")

# -- queue_position -- 1 for the next job; null for one that is not in the queue.
_other = jobs.alias("other")
_position = sa.case(
    (
        sa.and_(jobs.c.state == JobState.QUEUED, jobs.c.client == HERE),
        sa.select(sa.func.count())
        .select_from(_other)
        .where(
            _other.c.state == JobState.QUEUED,
            _other.c.client == HERE,
            sa.tuple_(_other.c.due_at, _other.c.id) <= sa.tuple_(jobs.c.due_at, jobs.c.id),
        )
        .correlate(jobs)
        .scalar_subquery(),
    )
).label("queue_position")

# -- read -- A job as it is shown. -- lock -- A job as it is changed.
READ = sa.select(*_columns, _position).select_from(_both)
READ_ONE = READ.where(jobs.c.id == _id)
LOCK = sa.select(*_columns).select_from(_both)
LOCK_ONE = LOCK.where(jobs.c.id == _id)

# -- lock_attempt -- A running job, only if this attempt still holds it.
LOCK_ATTEMPT = LOCK_ONE.where(
    jobs.c.worker_id == sa.bindparam("attempt_id"), jobs.c.state == JobState.RUNNING
)

# -- first_lost -- A job whose attempt no longer beats. -- first_queued -- The oldest of the queue.
_startable = _started < sa.bindparam("max_attempts")
_oldest = (jobs.c.due_at, jobs.c.id)
_is_lost = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < _now)
FIRST_LOST = LOCK.where(_is_lost, _startable, jobs.c.client == HERE).order_by(*_oldest).limit(1)
FIRST_QUEUED = (
    LOCK.where(jobs.c.state == JobState.QUEUED, jobs.c.client == HERE, _startable)
    .order_by(*_oldest)
    .limit(1)
)
THIS_ONE = LOCK_ONE.where(_startable, sa.or_(jobs.c.state == JobState.QUEUED, _is_lost))

# -- attempt_before -- The name of the last attempt of this run.
ATTEMPT_BEFORE = sa.select(attempts.c.worker_id).where(
    attempts.c.job_id == _id,
    attempts.c.number == sa.bindparam("number"),
    attempts.c.run == sa.bindparam("run"),
)

# -- beat -- Renew an attempt's lease. -- add_client -- And the keep-alive.
BEAT = (
    sa.update(jobs)
    .where(
        jobs.c.id == _id,
        jobs.c.worker_id == sa.bindparam("attempt_id"),
        jobs.c.state == JobState.RUNNING,
    )
    .values(
        lease_until=sa.bindparam("until"),
        progress=sa.bindparam("fraction"),
        phase=sa.bindparam("to_phase"),
        counts=sa.bindparam("to_counts", type_=jobs.c.counts.type),
        updated_at=_now,
    )
)
KEEP_ALIVE = (
    sa.update(ingress_jobs)
    .where(ingress_jobs.c.job_id.in_(sa.bindparam("job_ids", expanding=True)))
    .values(wanted_until=sa.bindparam("until"))
)
WISHES = sa.select(
    ingress_jobs.c.cancel_requested, ingress_jobs.c.origin, ingress_jobs.c.wanted_until
).where(ingress_jobs.c.job_id == _id)
UPDATE_INGRESS_JOB = sa.update(ingress_jobs).where(ingress_jobs.c.job_id == _of_job)

# -- to_cancel -- Queued jobs that were cancelled, or whose clients have all disconnected.
TO_CANCEL = LOCK.where(
    jobs.c.state == JobState.QUEUED,
    sa.or_(
        ingress_jobs.c.cancel_requested,
        sa.and_(ingress_jobs.c.origin == Origin.SYNC, ingress_jobs.c.wanted_until < _now),
    ),
)

# -- worn_out -- Started too often, or claimed by an ingress that died and never resumed.
WORN_OUT = LOCK.where(
    jobs.c.state == JobState.RUNNING,
    sa.or_(
        sa.and_(~_startable, jobs.c.lease_until < _now),
        sa.and_(jobs.c.client == CLAIMS, jobs.c.lease_until < sa.bindparam("claimed_before")),
    ),
)
LEFT_CLAIMS = LOCK.where(
    jobs.c.state == JobState.QUEUED,
    jobs.c.client == CLAIMS,
    jobs.c.updated_at < sa.bindparam("claimed_before"),
)

# -- phases_after -- The changes of phase of this run.
_run_began = (
    sa.select(sa.func.coalesce(sa.func.max(events.c.number), 0))
    .where(events.c.job_id == _id, events.c.kind == "queued_again")
    .scalar_subquery()
)
PHASES_AFTER = (
    sa.select(events)
    .where(
        events.c.job_id == _id,
        events.c.kind == "phase",
        events.c.number > sa.bindparam("number"),
        events.c.number > _run_began,
    )
    .order_by(events.c.number)
)

# -- newest_metrics -- Of the jobs that succeeded last.
NEWEST_METRICS = (
    sa.select(jobs.c.metrics)
    .where(jobs.c.state == JobState.SUCCEEDED)
    .order_by(jobs.c.ended_at.desc())
    .limit(sa.bindparam("at_most"))
)

# -- forget -- The oldest ended jobs beyond `keep`, unless a webhook of one, or of its batch, waits
# to be delivered, or its batch goes on. -- forget_undelivered -- Those beyond a larger `keep`,
# although one waits.
_beyond = (
    sa.select(jobs.c.id)
    .where(jobs.c.ended_at.is_not(None))
    .order_by(jobs.c.ended_at.desc())
    .offset(sa.bindparam("keep"))
)
_waits = deliveries.c.status == "pending"
_has_undelivered = sa.or_(
    sa.exists().where(deliveries.c.job_id == jobs.c.id, _waits),
    sa.exists().where(
        batch_jobs.c.job_id == jobs.c.id, deliveries.c.batch_id == batch_jobs.c.batch_id, _waits
    ),
)
FORGET_UNDELIVERED = sa.delete(jobs).where(jobs.c.id.in_(_beyond), ~IS_IN_OPEN_BATCH)
FORGET = FORGET_UNDELIVERED.where(
    sa.or_(jobs.c.ended_at < sa.bindparam("too_old"), ~_has_undelivered)
)

# -- count_unfinished --, -- count_queued --, -- count_keys --
COUNT_UNFINISHED = sa.select(sa.func.count()).where(
    jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
)
COUNT_QUEUED = sa.select(sa.func.count()).where(jobs.c.state == JobState.QUEUED)
COUNT_KEYS = sa.select(sa.func.count()).where(idempotency_keys.c.job_id == _id)


def but_not(statement: sa.Select[Any], job_ids: Collection[str]) -> sa.Select[Any]:
    """Return the statement without some jobs, such as those that run in the caller's process."""
    return statement.where(jobs.c.id.not_in(tuple(job_ids))) if job_ids else statement
