"""What routing has to know for one claim, and what it costs the client whose job is given out.

Every query is bounded: some jobs of some clients, one row for each kind of live worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from orchestrator.gpus import read_gpu_class
from orchestrator.routing import (
    Account,
    Accounts,
    QueuedJob,
    Requirements,
    RoutingRules,
    Situation,
    Tier,
    Worker,
    WorkerGroup,
    charge,
    due_at,
    rank,
)
from orchestrator.scaling.learnt import UNKNOWN_S, Learnt
from orchestrator.store.changes import Row
from orchestrator.store.database import Transaction
from orchestrator.store.learning import LearntKind, usual, usual_s
from orchestrator.store.states import AttemptEnd, JobState
from orchestrator.store.tables import accounts, attempts, jobs, learnt, virtual_clock, workers
from orchestrator.store.values import KEPT_AVATAR, NewJob, Rules

CLIENTS, JOBS_OF_A_CLIENT = 16, 16

# -- first_clients -- Those with queued jobs that have had the least service, and the virtual time
# at which the last job was given out.
_used = sa.func.coalesce(accounts.c.used, 0.0)
_time = sa.func.coalesce(sa.select(virtual_clock.c.time).scalar_subquery(), 0.0)
_start = sa.case((_used < _time, _time), else_=_used)
# Each step reads one entry of the index: grouping would read those of all queued jobs.
_queued = jobs.c.state == JobState.QUEUED
_waiting = sa.select(sa.func.min(jobs.c.client).label("client")).where(_queued).cte(recursive=True)
_next = sa.select(sa.func.min(jobs.c.client)).where(_queued, jobs.c.client > _waiting.c.client)
_waiting = _waiting.union_all(
    sa.select(_next.scalar_subquery()).where(_waiting.c.client.is_not(None))
)
_seconds = learnt.alias()
FIRST_CLIENTS = (
    sa.select(
        _waiting.c.client,
        sa.func.coalesce(accounts.c.weight, 1.0).label("weight"),
        _used.label("used"),
        usual(LearntKind.SECONDS, _seconds, UNKNOWN_S).label("expected_s"),
        _time.label("time"),
    )
    .outerjoin(accounts, accounts.c.client == _waiting.c.client)
    .outerjoin(
        _seconds,
        sa.and_(_seconds.c.kind == LearntKind.SECONDS, _seconds.c.name == _waiting.c.client),
    )
    .where(_waiting.c.client.is_not(None))
    .order_by(_start, _waiting.c.client)
    .limit(CLIENTS)
)

# -- candidates -- The first jobs of each of those clients that this worker can ever have.
_has_failed_here = sa.exists().where(
    attempts.c.job_id == jobs.c.id,
    attempts.c.run == jobs.c.run,
    attempts.c.worker_id == sa.bindparam("worker_id"),
    attempts.c.ending == AttemptEnd.FAILED,
)
_has_place_here = (
    sa.or_(jobs.c.failures == 0, ~_has_failed_here),
    jobs.c.min_vram_gb <= sa.bindparam("vram_gb"),
    # An avatar is used only by workers that say that they keep avatars.
    sa.or_(sa.bindparam("has_avatars"), ~jobs.c.video_url.startswith(KEPT_AVATAR)),
    sa.or_(jobs.c.architectures == "", jobs.c.architectures.contains(sa.bindparam("arch"))),
)


@cache
def candidates(clients: int) -> sa.CompoundSelect[Any]:
    """Return the statement for so many clients, `client_0` and so on.

    It has a part for each client, which reads the first rows of an index. A window function would
    read all queued jobs: with 10,000 of them, that took 16 ms in each claim, and this takes 2 ms
    (SQLite).
    """
    parts = []
    for number in range(clients):
        first = (
            sa.select(
                jobs.c.id,
                jobs.c.client,
                jobs.c.queued_at,
                jobs.c.priority,
                jobs.c.deadline,
                jobs.c.min_vram_gb,
                jobs.c.architectures,
            )
            .where(
                jobs.c.state == JobState.QUEUED,
                jobs.c.client == sa.bindparam(f"client_{number}"),
                *_has_place_here,
            )
            .order_by(jobs.c.due_at, jobs.c.id)
            .limit(JOBS_OF_A_CLIENT)
            .subquery()
        )
        parts.append(sa.select(first))
    return sa.union_all(*parts)


# -- live_groups -- One row for each kind of worker that may claim, with the speed of its class, and
# how many jobs wait, counted no further than any rule looks.
_waiting_jobs = (
    sa.select(jobs.c.id)
    .where(jobs.c.state == JobState.QUEUED)
    .limit(sa.bindparam("most_waiting"))
    .subquery()
)
_queue_length = sa.select(sa.func.count()).select_from(_waiting_jobs).scalar_subquery()
LIVE_GROUPS = (
    sa.select(
        _queue_length.label("queue_length"),
        workers.c.worker_type,
        workers.c.provider,
        workers.c.gpu_class,
        sa.func.count().label("live"),
        learnt.c.total,
        learnt.c.weight,
    )
    .outerjoin(
        learnt,
        sa.and_(learnt.c.kind == LearntKind.SPEED, learnt.c.name == workers.c.gpu_class),
    )
    .where(
        workers.c.seen_at >= sa.bindparam("since"),
        workers.c.left_at.is_(None),
        workers.c.is_drained.is_(False),
    )
    .group_by(
        workers.c.worker_type,
        workers.c.provider,
        workers.c.gpu_class,
        learnt.c.total,
        learnt.c.weight,
    )
)

# -- advance_clock -- The virtual time never goes back.
_to = sa.bindparam("to", type_=sa.Double)
ADVANCE_CLOCK = virtual_clock.update().where(virtual_clock.c.time < _to).values(time=_to)


def ranked(tx: Transaction, worker: Row, rules: Rules) -> tuple[list[QueuedJob], Accounts]:
    """Return the jobs that a worker may have now, the best one first, and the accounts."""
    first = tx.execute(FIRST_CLIENTS).mappings().all()
    time = first[0]["time"] if first else 0.0
    clients = {row["client"]: Account(row["weight"], row["used"]) for row in first}
    known = Accounts(time, clients)
    expected_s = {row["client"]: row["expected_s"] for row in first}
    gpu = read_gpu_class(worker["gpu_class"] or "")
    if not clients:
        return [], known
    rows = tx.execute(
        candidates(len(clients)),
        worker_id=worker["id"],
        vram_gb=gpu.vram_gb or 0.0,
        arch=_marked(gpu.architecture),
        has_avatars=(worker["capabilities"] or {}).get("avatars") is True,
        **{f"client_{number}": client for number, client in enumerate(clients)},
    ).mappings()
    found = [_queued_job(row, expected_s[row["client"]]) for row in rows]
    if not found:
        return [], known
    claiming = Worker(
        worker["id"],
        Tier(worker["worker_type"]),
        worker["provider"] or "unknown",
        worker["gpu_class"] or "",
        gpu,
    )
    return rank(claiming, found, _situation(tx, known, rules), rules.routing, tx.now), known


def charge_client(tx: Transaction, job: QueuedJob, known: Accounts) -> None:
    """Store that a client has had the service of a job that is given out. Both values only grow."""
    after = charge(job, known)
    account = after.clients[job.client]
    insert = tx.insert(accounts)
    upsert = insert.on_conflict_do_update(
        index_elements=["client"],
        set_={"used": insert.excluded.used},
        where=accounts.c.used < insert.excluded.used,
    )
    tx.execute(upsert, client=job.client, weight=account.weight, used=account.used)
    tx.execute(ADVANCE_CLOCK, to=after.clock)


def order_columns(
    tx: Transaction, new: NewJob, rules: RoutingRules, expected_s: float | None = None
) -> dict[str, object]:
    """Return the columns of a new run that queries order and filter by. `expected_s`: how long jobs
    of its client usually take; it is read if it is None.
    """
    requires = new.requires
    expected_s = usual_s(tx, new.client) if expected_s is None else expected_s
    job = QueuedJob(new.id, new.client, tx.now, new.priority, new.deadline, expected_s, requires)
    return {
        "min_vram_gb": requires.min_vram_gb,
        "architectures": "".join(_marked(name) for name in sorted(requires.architectures)),
        "due_at": due_at(job, rules),
    }


def _queued_job(row: Row, expected_s: float) -> QueuedJob:
    """Return a row of `jobs` for routing. Those that failed on the worker are filtered out."""
    return QueuedJob(
        row["id"],
        row["client"],
        row["queued_at"],
        row["priority"],
        row["deadline"],
        expected_s,
        requirements_of(row),
    )


def requirements_of(row: Row | Mapping[str, Any]) -> Requirements:
    """Return the cards that a job may run on."""
    names = frozenset(name for name in row["architectures"].split(",") if name)
    return Requirements(row["min_vram_gb"], names)


def _situation(tx: Transaction, known: Accounts, rules: Rules) -> Situation:
    """Return the live workers, the prices of those with an offer, and how many jobs wait.

    The worker that claims is one of the live ones, so there is at least one row.
    """
    groups, prices = [], {}
    offers = {offer.key: offer for offer in rules.offers}
    most = max(rule.min_queue_length for rule in rules.routing.overflow)
    since = tx.now - rules.lease_s
    rows = tx.execute(LIVE_GROUPS, since=since, most_waiting=most).mappings().all()
    for row in rows:
        key = row["provider"] or "unknown", row["gpu_class"] or ""
        tier = Tier(row["worker_type"])
        groups.append(WorkerGroup(tier, *key, read_gpu_class(key[1]), row["live"]))
        if key in offers:
            learnt_speed = Learnt(row["total"] or 0.0, row["weight"] or 0.0)
            prices[key] = offers[key].with_learnt(learnt_speed).usd_per_minute
    return Situation(rows[0]["queue_length"], tuple(groups), known, prices)


def _marked(architecture: str | None) -> str:
    """Return a name between commas, so that no name is found inside another."""
    return f",{architecture}," if architecture else ",unknown,"
