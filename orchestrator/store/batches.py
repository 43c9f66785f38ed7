"""Batches of jobs: entered together, read together, forgotten together.

A batch refers to its jobs, which are jobs like all others. A job may be in several batches. A batch
is kept until one of its jobs is forgotten, and jobs of a batch that has not ended are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from orchestrator.store.batch_values import Batch, BatchedJob, NewBatch
from orchestrator.store.database import Transaction
from orchestrator.store.states import JobState
from orchestrator.store.tables import batch_jobs, batches, jobs

Row = sa.RowMapping
APART_S = 0.001  # between two jobs of a batch, so that they begin in the order of the batch
UNFINISHED = (JobState.QUEUED, JobState.RUNNING)
_links = batch_jobs.join(jobs, jobs.c.id == batch_jobs.c.job_id)
_id: sa.BindParameter[str] = sa.bindparam("batch_id")

# -- jobs_of_batch -- In the order in which they were sent.
JOBS_OF_BATCH = (
    sa.select(*(jobs.c[name] for name in BatchedJob.__dataclass_fields__))
    .select_from(_links)
    .where(batch_jobs.c.batch_id == _id)
    .order_by(batch_jobs.c.position)
)

# -- in_order -- Jobs that were queued in one transaction are due at one instant.
_position = (
    sa.select(batch_jobs.c.position)
    .where(batch_jobs.c.batch_id == _id, batch_jobs.c.job_id == jobs.c.id)
    .correlate(jobs)
    .scalar_subquery()
)
IN_ORDER = (
    sa.update(jobs)
    .where(
        jobs.c.state == JobState.QUEUED,
        jobs.c.id.in_(sa.select(batch_jobs.c.job_id).where(batch_jobs.c.batch_id == _id)),
    )
    .values(due_at=jobs.c.due_at + APART_S * _position)
)

# -- by_key -- The batch of an idempotency key.
BY_KEY = sa.select(batches.c.id).where(
    batches.c.client == sa.bindparam("client"), batches.c.idempotency_key == sa.bindparam("key")
)

# -- batches_at_end -- Batches with a webhook whose end has not been noticed yet.
# -- notice_quiet_ends -- The end of those that nobody is told of.
_is_at_end = sa.and_(
    batches.c.noticed_at.is_(None),
    ~sa.exists()
    .select_from(_links)
    .where(batch_jobs.c.batch_id == batches.c.id, jobs.c.state.in_(UNFINISHED)),
)
BATCHES_AT_END = (
    sa.select(batches)
    .where(_is_at_end, batches.c.webhook_url.is_not(None))
    .order_by(batches.c.created_at)
    .limit(sa.bindparam("at_most"))
)
NOTICE_QUIET_ENDS = (
    sa.update(batches)
    .where(
        _is_at_end,
        sa.or_(batches.c.webhook_url.is_(None), batches.c.created_at < sa.bindparam("too_old")),
    )
    .values(noticed_at=sa.bindparam("now"))
)

# -- count_waiting -- Queued jobs of batches.
COUNT_WAITING = (
    sa.select(sa.func.count(sa.distinct(jobs.c.id)))
    .select_from(_links)
    .where(jobs.c.state == JobState.QUEUED)
)

# -- is_in_open_batch -- Whether a job of `jobs` belongs to a batch that has not ended.
IS_IN_OPEN_BATCH = (
    sa.exists()
    .where(
        batch_jobs.c.job_id == jobs.c.id,
        batches.c.id == batch_jobs.c.batch_id,
        batches.c.noticed_at.is_(None),
    )
    .correlate(jobs)
)

# -- forget_batches -- Those that have lost a job.
FORGET_BATCHES = sa.delete(batches).where(
    sa.select(sa.func.count())
    .where(batch_jobs.c.batch_id == batches.c.id)
    .correlate(batches)
    .scalar_subquery()
    < batches.c.size
)


def enter(tx: Transaction, new: NewBatch, job_ids: Sequence[str]) -> None:
    """Store a batch of jobs that are stored already."""
    row = {
        "id": new.id,
        "client": new.client,
        "idempotency_key": new.idempotency_key,
        "content_key": new.content_key,
        "size": len(job_ids),
        "webhook_url": new.webhook_url,
        "metadata": new.metadata,
        "created_at": tx.now,
        "noticed_at": None,
    }
    tx.execute(batches.insert().values(row))
    links = [
        {"batch_id": new.id, "position": position, "job_id": job_id}
        for position, job_id in enumerate(job_ids)
    ]
    tx.execute(batch_jobs.insert().values(links))
    tx.execute(IN_ORDER, batch_id=new.id)


def id_of_key(tx: Transaction, client: str, key: str) -> str | None:
    """Return the id of the batch that an idempotency key belongs to; None if there is none."""
    found = tx.execute(BY_KEY, client=client, key=key).scalar()
    return None if found is None else str(found)


def get(tx: Transaction, batch_id: str) -> Batch | None:
    """Return a batch with its jobs; None if there is none."""
    statement = sa.select(batches).where(batches.c.id == _id)
    row = tx.execute(statement, batch_id=batch_id).mappings().one_or_none()
    return None if row is None else _with_jobs(tx, row)


def at_end(tx: Transaction, at_most: int) -> list[Batch]:
    """Return batches whose jobs have all ended, and whose webhook is due for that."""
    rows = tx.execute(BATCHES_AT_END, at_most=at_most).mappings().all()
    return [_with_jobs(tx, row) for row in rows]


def mark_ended(tx: Transaction, batch_id: str) -> None:
    """Store that the end of a batch has been noticed, so that its webhook is not due again."""
    statement = sa.update(batches).where(batches.c.id == _id).values(noticed_at=tx.now)
    tx.execute(statement, batch_id=batch_id)


def count_batches(tx: Transaction, job_id: str) -> int:
    """Return how many batches a job belongs to."""
    statement = sa.select(sa.func.count()).where(batch_jobs.c.job_id == sa.bindparam("job_id"))
    return tx.execute(statement, job_id=job_id).scalar() or 0


def forget(tx: Transaction, too_old: float) -> None:
    """Delete the batches that have lost a job. The end of a batch without a webhook is noticed
    here, and that of any batch from before `too_old`, whose webhook cannot be queued.
    """
    tx.execute(NOTICE_QUIET_ENDS, now=tx.now, too_old=too_old)
    tx.execute(FORGET_BATCHES)


def count_waiting(tx: Transaction) -> int:
    """Return how many jobs of batches wait."""
    return tx.execute(COUNT_WAITING).scalar() or 0


def _with_jobs(tx: Transaction, row: Row) -> Batch:
    found = tx.execute(JOBS_OF_BATCH, batch_id=row["id"]).mappings()
    listed = tuple(BatchedJob(**{**job, "state": JobState(job["state"])}) for job in found)
    names = [name for name in Batch.__dataclass_fields__ if name != "jobs"]
    return Batch(**{name: row[name] for name in names}, jobs=listed)
