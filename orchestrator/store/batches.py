"""Batches of jobs: entered together, read together, forgotten together.

A batch refers to its jobs, which are jobs like all others. A job may be in several batches. A batch
is kept until one of its jobs is forgotten, and jobs of a batch that has not ended are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from orchestrator.store.batch_values import MAX_BATCHES, Batch, BatchedJob, NewBatch
from orchestrator.store.database import Transaction
from orchestrator.store.errors import BatchConflict, BatchNotFound, TooManyBatches
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

# -- in_order -- Jobs that were queued in one transaction would be due at one instant.
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
    .values(
        {
            name: jobs.c[name] + APART_S * (_position - sa.bindparam("size"))
            for name in ("due_at", "queued_at")
        }
    )
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
_ended_lately = (
    sa.exists()
    .select_from(_links)
    .where(batch_jobs.c.batch_id == batches.c.id, jobs.c.ended_at >= sa.bindparam("too_old"))
)
NOTICE_QUIET_ENDS = (
    sa.update(batches)
    .where(_is_at_end, sa.or_(batches.c.webhook_url.is_(None), ~_ended_lately))
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

# -- lock_batches_of_jobs -- Whose end has been noticed, in an order that all locks have.
LOCK_BATCHES_OF_JOBS = (
    sa.select(batches.c.id)
    .where(
        batches.c.noticed_at.is_not(None),
        batches.c.id.in_(
            sa.select(batch_jobs.c.batch_id).where(
                batch_jobs.c.job_id.in_(sa.bindparam("job_ids", expanding=True))
            )
        ),
    )
    .order_by(batches.c.id)
    .with_for_update()
)

# -- forget_batches -- Those that have lost a job.
FORGET_BATCHES = sa.delete(batches).where(
    sa.select(sa.func.count())
    .where(batch_jobs.c.batch_id == batches.c.id)
    .correlate(batches)
    .scalar_subquery()
    < batches.c.size
)


def submit(
    tx: Transaction, new: NewBatch, size: int, enter_jobs: Callable[[], Sequence[str]]
) -> tuple[Batch, bool]:
    """Enter a batch, or return the one that has its idempotency key. The second value is True if it
    was entered.

    Args:
        size: The number of its jobs.
        enter_jobs: Enters them in the same transaction, and returns their ids in order. It is only
            called if the batch is new.

    Raises:
        BatchConflict: the key belongs to a batch with different content.
    """
    # First of all, so that another request with the same key waits here, before it has locked jobs.
    if not _insert(tx, new, size):
        return _known(tx, new), False
    links = [
        {"batch_id": new.id, "position": position, "job_id": job_id}
        for position, job_id in enumerate(enter_jobs())
    ]
    tx.connection.execute(batch_jobs.insert(), links)
    tx.execute(IN_ORDER, batch_id=new.id, size=size)
    return of_client(tx, new.id, None), True


def _insert(tx: Transaction, new: NewBatch, size: int) -> bool:
    row = {
        "id": new.id,
        "client": new.client,
        "idempotency_key": new.idempotency_key,
        "content_key": new.content_key,
        "size": size,
        "webhook_url": new.webhook_url,
        "metadata": new.metadata,
        "created_at": tx.now,
        "noticed_at": None,
    }
    statement = tx.insert(batches).values(row).on_conflict_do_nothing().returning(batches.c.id)
    return tx.execute(statement).one_or_none() is not None


def _known(tx: Transaction, new: NewBatch) -> Batch:
    batch_id = tx.execute(BY_KEY, client=new.client, key=new.idempotency_key).scalar_one()
    batch = of_client(tx, batch_id, new.client)
    if batch.content_key != new.content_key:
        raise BatchConflict("the idempotency key belongs to a batch with different content")
    return batch


def of_client(tx: Transaction, batch_id: str, client: str | None) -> Batch:
    """Return a batch; `client` None may see those of all.

    Raises:
        BatchNotFound: there is none for this client.
    """
    batch = get(tx, batch_id)
    if batch is None or client not in (None, batch.client):
        raise BatchNotFound("there is no such batch")
    return batch


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


def refuse_if_in_many(tx: Transaction, job_id: str) -> None:
    """Bound the batches that a job belongs to.

    Raises:
        TooManyBatches: it can be in no further one.
    """
    statement = sa.select(sa.func.count()).where(batch_jobs.c.job_id == sa.bindparam("job_id"))
    if (tx.execute(statement, job_id=job_id).scalar() or 0) >= MAX_BATCHES:
        raise TooManyBatches(f"the job is in {MAX_BATCHES} batches")


def notice_quiet_ends(tx: Transaction, too_old: float) -> None:
    """Notice the ends of batches without a webhook, and those from before `too_old` of any batch,
    as its webhook cannot be queued.
    """
    tx.execute(NOTICE_QUIET_ENDS, now=tx.now, too_old=too_old)


def forget(tx: Transaction, too_old: float) -> None:
    """Delete the batches that have lost a job, after `notice_quiet_ends`."""
    notice_quiet_ends(tx, too_old)
    tx.execute(FORGET_BATCHES)


def forget_with(tx: Transaction, job_ids: Sequence[str]) -> None:
    """Delete the batches of locked jobs that are about to be deleted; open batches stay."""
    found = tx.execute(LOCK_BATCHES_OF_JOBS, job_ids=list(job_ids)).scalars().all()
    tx.execute(sa.delete(batches).where(batches.c.id.in_(found)))


def count_waiting(tx: Transaction) -> int:
    """Return how many jobs of batches wait."""
    return tx.execute(COUNT_WAITING).scalar() or 0


def _with_jobs(tx: Transaction, row: Row) -> Batch:
    found = tx.execute(JOBS_OF_BATCH, batch_id=row["id"]).mappings()
    listed = tuple(BatchedJob(**{**job, "state": JobState(job["state"])}) for job in found)
    names = [name for name in Batch.__dataclass_fields__ if name != "jobs"]
    return Batch(**{name: row[name] for name in names}, jobs=listed)
