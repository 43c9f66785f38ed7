"""What clients do with batches: submit them and cancel them, whole.

The jobs of a batch are inserted, and others are then locked, in the order of their ids. So no two
calls wait for each other, whatever jobs their batches have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from orchestrator.store import batches, jobs
from orchestrator.store.batch_values import Batch, NewBatch
from orchestrator.store.database import Transaction
from orchestrator.store.errors import (
    BatchedJobRefused,
    BatchEnded,
    JobConflict,
    QueueFull,
    TooManyBatches,
    TooManyWebhooks,
)
from orchestrator.store.tables import batch_jobs
from orchestrator.store.tables import jobs as jobs_table
from orchestrator.store.values import NewJob, Rules

# -- lock_live_jobs_of_batch -- Those that wait or run, in an order that all locks have.
LOCK_LIVE_JOBS_OF_BATCH = (
    sa.select(jobs_table)
    .join(batch_jobs, batch_jobs.c.job_id == jobs_table.c.id)
    .where(
        batch_jobs.c.batch_id == sa.bindparam("batch_id"),
        jobs_table.c.state.in_(batches.UNFINISHED),
    )
    .order_by(jobs_table.c.id)
    .with_for_update(of=jobs_table)
)


def submit(
    tx: Transaction, new: NewBatch, entered: Sequence[NewJob], rules: Rules
) -> tuple[Batch, bool]:
    """Queue a batch with all of its jobs, or return the one with its idempotency key. The second
    value is True if it was queued.

    Raises:
        BatchConflict: the key belongs to a batch with different content.
        BatchedJobRefused: a job cannot be queued or joined.
        QueueFull: more jobs would wait than may wait.
    """
    return batches.submit(tx, new, len(entered), lambda: _enter(tx, entered, rules))


def cancel(tx: Transaction, batch_id: str, client: str | None) -> tuple[Batch, tuple[str, ...]]:
    """End every job of a batch that waits or runs. Return the batch, and the ids of these jobs.

    Raises:
        BatchNotFound: there is none for this client.
        BatchEnded: all of its jobs have ended.
    """
    batches.of_client(tx, batch_id, client)
    live = tx.execute(LOCK_LIVE_JOBS_OF_BATCH, batch_id=batch_id).mappings().all()
    for row in live:
        jobs.cancel_locked(tx, row)
    batch = batches.of_client(tx, batch_id, client)
    if not live:
        raise BatchEnded(batch.status)
    return batch, tuple(row["id"] for row in live)


def _enter(tx: Transaction, entered: Sequence[NewJob], rules: Rules) -> list[str]:
    """Queue or join jobs; their ids, in order."""
    unbounded = replace(rules, max_queued=None)  # they are counted once, at the end
    in_order = sorted(enumerate(entered), key=lambda one: one[1].id)
    inserted = jobs.submit_new(tx, [new for _, new in in_order], unbounded)
    refused: list[BatchedJobRefused] = []
    for index, new in in_order:
        if new.id in inserted:
            continue
        try:
            jobs.submit(tx, new, unbounded)
            batches.refuse_if_in_many(tx, new.id)
        except (JobConflict, TooManyBatches, TooManyWebhooks) as reason:
            refused.append(BatchedJobRefused(index, reason))
    if refused:
        raise min(refused, key=lambda one: one.index)
    _refuse_if_full(tx, rules)
    return [new.id for new in entered]


def _refuse_if_full(tx: Transaction, rules: Rules) -> None:
    most = rules.max_queued
    if most is not None and jobs.count_queued(tx, most + 1) > most:
        raise QueueFull(f"more than {most} jobs would wait")
