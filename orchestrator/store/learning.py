"""What finished jobs teach: the speed of their GPU class, and how long jobs of their client are."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from orchestrator.scaling.learnt import ENOUGH_JOBS, MEMORY_OF_REPORTS, UNKNOWN_S, Learnt
from orchestrator.store.changes import Row
from orchestrator.store.database import Transaction
from orchestrator.store.tables import jobs, learnt
from orchestrator.store.values import Completion

MAX_FRAMES = 10_000_000  # more is not believed: four days of video at 25 frames/s


class LearntKind(StrEnum):
    """What a row of `learnt` is about."""

    SPEED = "speed"  # of a GPU class: frames, by seconds of a busy worker
    FRAMES = "frames"  # of a client: frames, by jobs
    SECONDS = "seconds"  # of a client: seconds of a busy worker, by jobs


def learn(tx: Transaction, row: Row, attempt: Row, result: Completion) -> None:
    """Store what a finished job teaches. `row` is the job as it was while it ran.

    A worker that runs several jobs at once gives each a part of its time, so the seconds of a job
    are divided by the jobs that its worker holds at the end.
    """
    held = tx.execute(_HELD, worker_id=attempt["worker_id"]).scalar() or 0
    seconds = (tx.now - attempt["started_at"]) / max(held, 1)
    frames = frames_of(result.receipt) or row["frames"]
    if seconds <= 0:
        return
    found = [_report(tx, LearntKind.SECONDS, row["client"], seconds, 1.0)]
    if frames is not None:
        found.append(_report(tx, LearntKind.FRAMES, row["client"], frames, 1.0))
        if attempt["gpu_class"]:
            found.append(_report(tx, LearntKind.SPEED, attempt["gpu_class"], frames, seconds))
    insert = tx.insert(learnt).values(found)
    faded = {
        name: learnt.c[name] * MEMORY_OF_REPORTS + insert.excluded[name]
        for name in ("total", "weight")
    }
    faded["learnt_at"] = insert.excluded["learnt_at"]
    tx.execute(insert.on_conflict_do_update(index_elements=["kind", "name"], set_=faded))


def frames_of(facts: Any) -> int | None:
    """Return the frames that a worker says a job has; None if it says none, or nonsense."""
    for name in ("frames_total", "frames"):
        value = (facts or {}).get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_FRAMES:
            return value
    return None


def speeds(tx: Transaction) -> dict[str, Learnt]:
    """Return what is known about the frames/s of GPU classes."""
    rows = tx.execute(sa.select(learnt).where(learnt.c.kind == LearntKind.SPEED)).mappings()
    return {row["name"]: Learnt(row["total"], row["weight"]) for row in rows}


def mean_of_all(kind: LearntKind) -> sa.ScalarSelect[Any]:
    """Return the expression for the mean over all clients; null if nothing is known."""
    mean = sa.func.sum(learnt.c.total) / sa.func.sum(learnt.c.weight)
    return sa.select(mean).where(learnt.c.kind == kind).scalar_subquery()


def usual(kind: LearntKind, of: sa.FromClause, otherwise: float) -> sa.ColumnElement[float]:
    """Return the expression for what jobs of a client usually have.

    `of` is the client's row of `learnt`, outer-joined. Without enough reports of the client it is
    the mean over all clients.
    """
    own = sa.case((of.c.weight >= ENOUGH_JOBS, of.c.total / of.c.weight))
    return sa.func.coalesce(own, mean_of_all(kind), sa.literal(otherwise))


_of_client = learnt.alias()
# -- usual_s -- The seconds that a job of one client usually takes.
USUAL_S = (
    sa.select(usual(LearntKind.SECONDS, _of_client, UNKNOWN_S))
    .select_from(sa.select(sa.literal(1).label("one")).subquery())
    .outerjoin(
        _of_client,
        sa.and_(
            _of_client.c.kind == LearntKind.SECONDS, _of_client.c.name == sa.bindparam("client")
        ),
    )
)


def usual_s(tx: Transaction, client: str) -> float:
    """Return the seconds that a job of a client usually takes."""
    return float(tx.execute(USUAL_S, client=client).scalar() or UNKNOWN_S)


# -- held -- How many jobs a worker holds.
_HELD = (
    sa.select(sa.func.count())
    .select_from(jobs)
    .where(jobs.c.worker_id == sa.bindparam("worker_id"))
)


def _report(
    tx: Transaction, kind: LearntKind, name: str, total: float, weight: float
) -> dict[str, object]:
    return {"kind": kind, "name": name, "total": total, "weight": weight, "learnt_at": tx.now}
