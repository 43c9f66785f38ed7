"""The statements of the store that more than one operation uses, named, the same on SQLite and
PostgreSQL.

`FOR UPDATE` is left out on SQLite, where a writing transaction already is the only one. Values are
always bound, never part of the text.
"""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.store.states import PUBLISHING, TRANSITIONS, Change, JobState
from orchestrator.store.tables import attempts, events, jobs

# -- lock_job -- A job, held until the transaction ends. Every change of a job begins with it.
LOCK_JOB = sa.select(jobs).where(jobs.c.id == sa.bindparam("job_id")).with_for_update()

# -- claim_job -- Locks a queued job and gives it to a worker in one exchange. No row if it has been
# claimed, or is being claimed.
_queued_job = (
    sa.select(jobs.c.id)
    .where(jobs.c.id == sa.bindparam("job_id"), jobs.c.state == JobState.QUEUED)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
CLAIM_JOB = (
    sa.update(jobs)
    .where(jobs.c.id == _queued_job)
    .values(
        state=TRANSITIONS[JobState.QUEUED, Change.CLAIM],
        attempt=jobs.c.attempt + 1,
        phase="claimed",
        worker_id=sa.bindparam("by_worker"),
        leased_at=sa.bindparam("at"),
        lease_until=sa.bindparam("until"),
        unlisted=0,
        updated_at=sa.bindparam("at"),
        ended_at=None,
    )
    .returning(*jobs.c)
)

# -- lock_held_jobs -- All jobs that a worker holds a lease of, in an order that all locks have.
LOCK_HELD_JOBS = (
    sa.select(jobs)
    .where(jobs.c.worker_id == sa.bindparam("worker_id"))
    .order_by(jobs.c.id)
    .with_for_update()
)

# -- lock_expired_jobs -- Jobs whose worker has been silent for longer than the lease.
LOCK_EXPIRED_JOBS = (
    sa.select(jobs)
    .where(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < sa.bindparam("now"))
    .order_by(jobs.c.id)
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)

# -- update_job -- The row has been locked before.
UPDATE_JOB = sa.update(jobs).where(jobs.c.id == sa.bindparam("job_id"))

# -- renew_lease -- Of one job that its worker has listed.
RENEW_LEASE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"))
    .values(lease_until=sa.bindparam("until"), unlisted=0)
)

# -- go_on --, -- go_on_counting -- A running attempt is further than before, in the same phase.
# Both renew its lease; the second one stores its counts too.
_fraction = sa.bindparam("fraction", type_=sa.Double)
_until = sa.bindparam("until", type_=sa.Double)
_longest = jobs.c.leased_at + sa.bindparam("max_attempt_s", type_=sa.Double)
GO_ON = (
    sa.update(jobs)
    .where(
        jobs.c.id == sa.bindparam("of_job"),
        jobs.c.state == JobState.RUNNING,
        jobs.c.worker_id == sa.bindparam("of_worker"),
        jobs.c.attempt == sa.bindparam("of_number"),
        jobs.c.phase == sa.bindparam("in_phase"),
        jobs.c.phase != PUBLISHING,
    )
    .values(
        progress=sa.case((jobs.c.progress < _fraction, _fraction), else_=jobs.c.progress),
        lease_until=sa.case((_longest < _until, _longest), else_=_until),
        unlisted=0,
        updated_at=sa.bindparam("at"),
    )
)

GO_ON_COUNTING = GO_ON.values(
    counts=sa.bindparam("counts", type_=jobs.c.counts.type),
    frames=sa.func.coalesce(sa.bindparam("frames", type_=jobs.c.frames.type), jobs.c.frames),
)

# -- end_attempt -- Only once: an attempt that has ended keeps its end.
END_ATTEMPT = sa.update(attempts).where(
    attempts.c.job_id == sa.bindparam("of_job"),
    attempts.c.number == sa.bindparam("of_number"),
    attempts.c.ending.is_(None),
)

# -- attempt_by_number --, -- latest_attempt_of --, -- attempt_by_buffer_id -- Whom a report is of.
ATTEMPT_BY_NUMBER = sa.select(attempts).where(
    attempts.c.job_id == sa.bindparam("job_id"), attempts.c.number == sa.bindparam("number")
)
LATEST_ATTEMPT_OF = (
    sa.select(attempts)
    .where(
        attempts.c.job_id == sa.bindparam("job_id"),
        attempts.c.worker_id == sa.bindparam("worker_id"),
    )
    .order_by(attempts.c.number.desc())
    .limit(1)
)
ATTEMPT_BY_BUFFER_ID = sa.select(attempts).where(
    attempts.c.buffer_job_id == sa.bindparam("buffer_job_id")
)

# -- append_event -- The next number of a job, which is locked, is taken in the same exchange.
_given = ("job_id", "kind", "happened_at", "attempt", "facts")
_last_number = sa.func.coalesce(sa.func.max(events.c.number), 0)
APPEND_EVENT = (
    sa.insert(events)
    .from_select(
        ["number", *_given],
        sa.select(
            _last_number + 1, *(sa.bindparam(name, type_=events.c[name].type) for name in _given)
        ).where(events.c.job_id == sa.bindparam("job_id", type_=events.c.job_id.type)),
    )
    .returning(events.c.number)
)


def begins_with(column: sa.Column[str], prefix: str) -> sa.ColumnElement[bool]:
    """Return the condition that a text begins with another one.

    It is not LIKE, which ignores the case of letters on one of the databases only.
    """
    return sa.func.substr(column, 1, len(prefix)) == prefix
