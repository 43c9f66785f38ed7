"""The statements of the store that more than one operation uses, named, the same on SQLite and
PostgreSQL.

`FOR UPDATE` is left out on SQLite, where a writing transaction already is the only one. Values are
always bound, never part of the text.
"""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.store.states import JobState
from orchestrator.store.tables import attempts, events, jobs

# -- lock_job -- A job, held until the transaction ends. Every change of a job begins with it.
LOCK_JOB = sa.select(jobs).where(jobs.c.id == sa.bindparam("job_id")).with_for_update()

# -- lock_queued_job -- The same for a claim: no row if it is claimed, or being claimed.
LOCK_QUEUED_JOB = (
    sa.select(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"), jobs.c.state == JobState.QUEUED)
    .with_for_update(skip_locked=True)
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
