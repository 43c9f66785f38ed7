"""What is deleted when it has been kept for long enough.

A job goes with its attempts, events, webhooks and deliveries, and with the batches that it belongs
to. Jobs of a batch that has not ended are kept.
"""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.store import batches, loops
from orchestrator.store import tables as t
from orchestrator.store.database import Transaction
from orchestrator.store.values import Rules

JOBS_AT_ONCE = 500


def forget_jobs(tx: Transaction, rules: Rules) -> int:
    """Delete old jobs with all that belongs to them. Return how many they were."""
    is_old = t.jobs.c.ended_at < tx.now - rules.keep_ended_s
    if rules.upload_s is not None:
        # Its attempts are needed until what they have uploaded is removed.
        has_uploads = sa.exists().where(
            t.attempts.c.job_id == t.jobs.c.id, t.attempts.c.uploads_until.is_not(None)
        )
        is_old = sa.and_(is_old, ~has_uploads)
    # Others that forget or join these jobs at the same time are not waited for.
    old = (
        sa.select(t.jobs.c.id)
        .where(is_old, ~batches.IS_IN_OPEN_BATCH)
        .limit(JOBS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    ids = tx.execute(old).scalars().all()
    batches.forget_with(tx, ids)
    # A batch may have joined one of them just before it was locked.
    which = t.jobs.c.id.in_(ids), ~batches.IS_IN_OPEN_BATCH
    return tx.execute(t.jobs.delete().where(*which)).rowcount


def forget_others(tx: Transaction, rules: Rules) -> None:
    """Delete silent workers, what has not been learnt again, and old decisions of the scaling."""
    silent = t.workers.c.seen_at < tx.now - rules.keep_workers_s
    tx.execute(t.workers.delete().where(silent))
    unused = t.learnt.c.learnt_at < tx.now - rules.keep_ended_s
    tx.execute(t.learnt.delete().where(unused))
    loops.forget_decisions(tx, rules.keep_decisions_s)
