"""Webhooks: who is told of the end of a job or a batch, the queue of deliveries, and their log.

    a job ends ─► one row for each webhook, in the same transaction ─► taken under a lease
      ─► delivered, or due again later ─► failed, after the last try ─► queued again by a call

A row keeps the job as it was when it ended, so that every try sends the same event, also if the job
is queued again meanwhile. The result of a try counts only if no other process has taken the row
since. Rows go with their job.

The end of a batch is noticed, and its row is queued, when a delivery is taken: two jobs that end in
two transactions at once would each see the other one running.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from orchestrator.store import batches, statements
from orchestrator.store.batch_values import Batch, as_json
from orchestrator.store.database import Transaction
from orchestrator.store.delivery_values import Delivery, TakenDelivery, Try
from orchestrator.store.errors import DeliveryNotFound, TooManyWebhooks
from orchestrator.store.states import JobState, status_of
from orchestrator.store.tables import deliveries, ingress_jobs, jobs, webhooks
from orchestrator.store.values import JsonObject, without_query

MAX_WEBHOOKS = 16  # of one job
MAX_LOG = 20  # tries that a delivery keeps, the newest
SHOWN = "shown"  # in a snapshot: the job or batch as clients see it, in place of its columns
BATCHES_AT_ONCE = 20  # of which a transaction notices the end
Row = sa.RowMapping

# -- lock_due_delivery -- The one that has been due longest, skipped if it is being taken.
LOCK_DUE_DELIVERY = (
    sa.select(deliveries)
    .where(deliveries.c.due_at <= sa.bindparam("now"))
    .order_by(deliveries.c.due_at, deliveries.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)

# -- webhooks_of -- Of one job.
WEBHOOKS_OF = sa.select(webhooks).where(webhooks.c.job_id == sa.bindparam("job_id"))

# -- ingress_row -- What an ingress keeps of a job in addition; an orchestrator has none.
INGRESS_ROW = sa.select(ingress_jobs).where(ingress_jobs.c.job_id == sa.bindparam("job_id"))

# -- untold_ends -- Jobs that have ended and have webhooks, but no delivery.
UNTOLD_ENDS = (
    sa.select(jobs.c.id)
    .where(
        jobs.c.ended_at.is_not(None),
        sa.exists().where(webhooks.c.job_id == jobs.c.id),
        ~sa.exists().where(deliveries.c.job_id == jobs.c.id),
    )
    .order_by(jobs.c.ended_at)
)

# -- lock_delivery --
LOCK_DELIVERY = (
    sa.select(deliveries).where(deliveries.c.id == sa.bindparam("of_id")).with_for_update()
)

# -- update_delivery -- The row has been locked before.
UPDATE_DELIVERY = sa.update(deliveries).where(deliveries.c.id == sa.bindparam("of_id"))


def subscribe(
    tx: Transaction, job_id: str, url: str, metadata: JsonObject | None, *, is_new_run: bool = False
) -> None:
    """Let `url` be told of the ends of a job, once each. If it has ended, that end is told.

    A webhook keeps the metadata that came with it first in a run.

    Raises:
        TooManyWebhooks: the job has as many as one job may have.
    """
    values = {"job_id": job_id, "url": url, "metadata": dict(metadata) if metadata else None}
    statement = tx.insert(webhooks).values(values).on_conflict_do_nothing()
    if tx.execute(statement.returning(webhooks.c.url)).one_or_none() is None:
        if is_new_run:
            mine = webhooks.c.job_id == job_id, webhooks.c.url == url
            tx.execute(sa.update(webhooks).where(*mine).values(metadata=values["metadata"]))
        return
    of_job = sa.select(sa.func.count()).where(webhooks.c.job_id == job_id)
    if (tx.execute(of_job.select_from(webhooks)).scalar() or 0) > MAX_WEBHOOKS:
        raise TooManyWebhooks(f"the job has {MAX_WEBHOOKS} webhooks")
    announce(tx, job_id)


def announce(tx: Transaction, job_id: str) -> None:
    """Queue the deliveries of a locked job if it has ended."""
    mine = tx.execute(WEBHOOKS_OF, job_id=job_id).mappings().all()
    if not mine:
        return
    row = tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one()
    if not JobState(row["state"]).is_terminal:
        return
    more = tx.execute(INGRESS_ROW, job_id=job_id).mappings().one_or_none()
    for webhook in mine:
        _queue(
            tx,
            id=_event_id(row, webhook["url"]),
            job_id=row["id"],
            client=row["client"],
            url=webhook["url"],
            event=f"avatar.job.{status_of(JobState(row['state']))}",
            snapshot={**(more or {}), **_snapshot(row, webhook["metadata"])},
        )


def announce_untold(tx: Transaction) -> None:
    """Queue the deliveries of jobs that had ended when an earlier release stopped."""
    for job_id in tx.execute(UNTOLD_ENDS).scalars().all():
        announce(tx, job_id)


def bring_over(tx: Transaction, data: JsonObject, happened_at: float, **columns: object) -> None:
    """Queue an event that an earlier release has kept. `data` is the job or batch as it was shown
    then; `columns` are those that tell whom it goes to and what it is about.
    """
    _queue(tx, snapshot={SHOWN: dict(data)}, created_at=happened_at, **columns)


def take(tx: Transaction, lease_s: float) -> TakenDelivery | None:
    """Lease the delivery that has been due longest; None if none is due."""
    for batch in batches.at_end(tx, BATCHES_AT_ONCE):
        _announce_batch(tx, batch)
    row = tx.execute(LOCK_DUE_DELIVERY, now=tx.now).mappings().one_or_none()
    if row is None:
        return None
    values = {"due_at": tx.now + lease_s, "tries": row["tries"] + 1, "taken": row["taken"] + 1}
    tx.execute(UPDATE_DELIVERY.values(values), of_id=row["id"])
    age_s = tx.now - row["started_at"]
    return TakenDelivery(
        row["id"],
        row["batch_id"] is not None,
        row["client"],
        row["url"],
        row["event"],
        row["snapshot"],
        row["created_at"],
        values["tries"],
        values["taken"],
        age_s,
    )


def settle(tx: Transaction, taken: TakenDelivery, result: Try, pause_s: float | None) -> bool:
    """Store the result of a try. `pause_s` is the time to the next one; None: there is none.

    Return False if it does not count, because the row was taken again or is gone.
    """
    row = tx.execute(LOCK_DELIVERY, of_id=taken.id).mappings().one_or_none()
    if row is None or row["status"] != "pending" or row["taken"] != taken.taken:
        return False
    told = {"at": tx.now, "code": result.code, "error": result.error}
    ended = {"status": "delivered" if result.is_accepted else "failed", "ended_at": tx.now}
    values = {"log": [*row["log"], told][-MAX_LOG:], "due_at": None, **ended}
    if pause_s is not None and not result.is_accepted:
        values |= {"status": "pending", "ended_at": None, "due_at": tx.now + pause_s}
    tx.execute(UPDATE_DELIVERY.values(values), of_id=taken.id)
    return True


def again(tx: Transaction, job_id: str, delivery_id: str) -> Delivery:
    """Queue a delivery again, whatever became of it; all tries are made again.

    Raises:
        DeliveryNotFound: the job has no such delivery.
    """
    row = tx.execute(LOCK_DELIVERY, of_id=delivery_id).mappings().one_or_none()
    if row is None or row["job_id"] != job_id:
        raise DeliveryNotFound("the job has no such delivery")
    fresh = {"status": "pending", "tries": 0, "started_at": tx.now, "due_at": tx.now}
    # A try that runs at this moment does not count any more.
    values = {**fresh, "ended_at": None, "taken": row["taken"] + 1}
    tx.execute(UPDATE_DELIVERY.values(values), of_id=delivery_id)
    return _delivery_of({**row, **fresh, "ended_at": None})


def of_job(tx: Transaction, job_id: str) -> tuple[Delivery, ...]:
    """Return the deliveries of a job, the first one first."""
    statement = (
        sa.select(deliveries)
        .where(deliveries.c.job_id == job_id)
        .order_by(deliveries.c.created_at, deliveries.c.id)
    )
    return tuple(_delivery_of(row) for row in tx.execute(statement).mappings())


def seconds_to_next(tx: Transaction) -> float | None:
    """Return how soon the next delivery is due; None if there is none."""
    due = tx.execute(sa.select(sa.func.min(deliveries.c.due_at))).scalar()
    return None if due is None else max(0.0, float(due) - tx.now)


def _announce_batch(tx: Transaction, batch: Batch) -> None:
    assert batch.webhook_url is not None
    _queue(
        tx,
        id=f"evt_{batch.id}",  # a batch has one end only
        batch_id=batch.id,
        client=batch.client,
        url=batch.webhook_url,
        event=f"avatar.batch.{batch.status}",
        snapshot=as_json(batch),
    )
    batches.mark_ended(tx, batch.id)


def _queue(tx: Transaction, **columns: object) -> None:
    """Queue a delivery, unless it has been queued already."""
    fresh = {
        "status": "pending",
        "tries": 0,
        "taken": 0,
        "log": [],
        "created_at": tx.now,
        "started_at": tx.now,
        "due_at": tx.now,
    }
    tx.execute(tx.insert(deliveries).values({**fresh, **columns}).on_conflict_do_nothing())


def _snapshot(row: Row, metadata: JsonObject | None) -> dict[str, Any]:
    """Return the job's row with the webhook's metadata, and without signatures."""
    kept = {column.name: row[column.name] for column in jobs.columns}
    bare = {name: without_query(row[name]) for name in ("video_url", "audio_url")}
    return {**kept, **bare, "metadata": metadata}


def _event_id(row: Row, url: str) -> str:
    """Return the same id for the same end of a job and the same target."""
    end = [row["id"], row["created_at"], row["run"], row["attempt"], row["state"], url]
    digest = hashlib.sha256("\0".join(map(str, end)).encode("utf-8", "surrogatepass"))
    return f"evt_{digest.hexdigest()[:32]}"


def _delivery_of(row: Row | Mapping[str, Any]) -> Delivery:
    log = tuple(Try(told["code"], told["error"], told["at"]) for told in row["log"])
    names = ("id", "url", "event", "status", "tries", "created_at", "due_at", "ended_at")
    return Delivery(**{name: row[name] for name in names}, log=log)
