"""What the operator sees of everything at once: counts, ages, money, and pages of workers.

Whatever is counted here is counted no further than a limit, so that no table makes a page slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import sqlalchemy as sa

from orchestrator.store.database import Transaction
from orchestrator.store.statements import begins_with
from orchestrator.store.states import JobState
from orchestrator.store.tables import jobs, workers
from orchestrator.store.values import Rules, Worker
from orchestrator.store.workers import held_jobs, worker_of

COUNTED = 100_000  # of the jobs in one state
RECENT_S = 3600.0  # jobs that ended before are neither counted nor added up
RECEIPTS = 500  # of the newest results, in which dollars are looked for


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Which workers a list has. None stands for all."""

    worker_type: str | None = None
    is_online: bool | None = None
    id_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """Workers, ordered by their ids, and the id after which the next page begins."""

    workers: tuple[Worker, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """How many workers of a tier are `busy`, `idle`, `draining` or `offline`."""

    worker_type: str
    state: str
    workers: int


@dataclass(frozen=True, slots=True)
class Spending:
    """What `jobs` results of the last hour have cost, and how many minutes of video they are.

    Only results whose receipts have both are in it.
    """

    usd: float
    finished_minutes: float
    jobs: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at once. Of the jobs that have ended, `jobs` counts those of the last hour, but
    all dead ones. `oldest_queued_s` is None if no job waits. `usd_per_hour` is what the workers
    cost that are online and whose price is known; None if no prices are.
    """

    now: float
    jobs: Mapping[JobState, int]
    oldest_queued_s: float | None
    workers: tuple[WorkerCount, ...]
    spending: Spending
    usd_per_hour: float | None


def overview(tx: Transaction, rules: Rules) -> Overview:
    """Return how many jobs and workers there are in which state, and what jobs have cost."""
    open_states = (JobState.QUEUED, JobState.RUNNING, JobState.DEAD)
    counts = {state: _count(tx, jobs.c.state == state) for state in open_states}
    ended = dict.fromkeys((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED), 0)
    recent = sa.select(jobs.c.state).where(jobs.c.ended_at > tx.now - RECENT_S).limit(COUNTED)
    found = recent.subquery()
    grouped = sa.select(found.c.state, sa.func.count().label("jobs")).group_by(found.c.state)
    for row in tx.execute(grouped).mappings():
        if JobState(row["state"]) in ended:
            ended[JobState(row["state"])] = row["jobs"]
    first = sa.select(sa.func.min(jobs.c.queued_at)).where(jobs.c.state == JobState.QUEUED)
    since = tx.execute(first).scalar()
    return Overview(
        now=tx.now,
        jobs={**counts, **ended},
        oldest_queued_s=None if since is None else max(0.0, tx.now - since),
        workers=_worker_counts(tx, rules),
        spending=_spending(tx),
        usd_per_hour=_usd_per_hour(tx, rules),
    )


def worker_page(
    tx: Transaction, rules: Rules, which: WorkerFilter, limit: int, after: str | None
) -> WorkerPage:
    """Return at most `limit` workers, ordered by their ids, those after `after`."""
    held = held_jobs()
    statement = (
        sa.select(workers, sa.func.coalesce(held.c.held, 0).label("held"))
        .outerjoin(held, held.c.worker_id == workers.c.id)
        .order_by(workers.c.id)
        .limit(limit + 1)
    )
    if which.id_prefix is not None:
        statement = statement.where(begins_with(workers.c.id, which.id_prefix))
    if which.worker_type is not None:
        statement = statement.where(workers.c.worker_type == which.worker_type)
    if which.is_online is not None:
        is_online = _is_online(tx, rules)
        statement = statement.where(is_online if which.is_online else sa.not_(is_online))
    if after is not None:
        statement = statement.where(workers.c.id > after)
    rows = tx.execute(statement).mappings().all()
    found = tuple(worker_of(tx, row, rules) for row in rows[:limit])
    return WorkerPage(found, found[-1].id if len(rows) > limit else None)


def _count(tx: Transaction, *conditions: sa.ColumnElement[bool]) -> int:
    found = sa.select(jobs.c.id).where(*conditions).limit(COUNTED)
    return tx.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar() or 0


def _is_online(tx: Transaction, rules: Rules) -> sa.ColumnElement[bool]:
    return sa.and_(workers.c.left_at.is_(None), workers.c.seen_at >= tx.now - rules.lease_s)


def _worker_counts(tx: Transaction, rules: Rules) -> tuple[WorkerCount, ...]:
    held = held_jobs()
    state = sa.case(
        (sa.not_(_is_online(tx, rules)), "offline"),
        (workers.c.is_drained, "draining"),
        (held.c.held > 0, "busy"),
        else_="idle",
    ).label("state")
    grouped = (
        sa.select(workers.c.worker_type, state, sa.func.count().label("workers"))
        .outerjoin(held, held.c.worker_id == workers.c.id)
        .group_by(workers.c.worker_type, state)
        .order_by(workers.c.worker_type, state)
    )
    rows = tx.execute(grouped).mappings()
    return tuple(WorkerCount(row["worker_type"], row["state"], row["workers"]) for row in rows)


def _usd_per_hour(tx: Transaction, rules: Rules) -> float | None:
    if not rules.offers:
        return None
    prices = {offer.key: offer.usd_per_hour for offer in rules.offers}
    kinds = workers.c.provider, workers.c.gpu_class
    online = (
        sa.select(*kinds, sa.func.count().label("workers"))
        .where(_is_online(tx, rules))
        .group_by(*kinds)
    )
    usd = 0.0
    for row in tx.execute(online).mappings():
        usd += prices.get((row["provider"], row["gpu_class"]), 0.0) * row["workers"]
    return usd


def _spending(tx: Transaction) -> Spending:
    """Add up the receipts of the last hour. A worker may send anything as its receipt."""
    newest = (
        sa.select(jobs.c.receipt)
        .where(jobs.c.state == JobState.SUCCEEDED, jobs.c.ended_at > tx.now - RECENT_S)
        .order_by(jobs.c.ended_at.desc())
        .limit(RECEIPTS)
    )
    usd, minutes, count = 0.0, 0.0, 0
    for (receipt,) in tx.execute(newest):
        cost = cost_of(receipt)
        if cost is not None:
            usd, minutes, count = usd + cost.usd, minutes + cost.finished_minutes, count + 1
    return Spending(usd, minutes, count)


def cost_of(receipt: object) -> Spending | None:
    """Return what one result has cost; None if its receipt does not say it."""
    said = receipt if isinstance(receipt, Mapping) else {}
    usd, finished_s = said.get("usd"), said.get("finished_s")
    if not (_is_amount(usd) and _is_amount(finished_s)):
        return None
    return Spending(usd, finished_s / 60.0, 1)


def _is_amount(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6
