"""What scaling has to know of the jobs: the frames that are left, by when they are wanted."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.scaling.learnt import UNKNOWN_FRAMES, UNKNOWN_S
from orchestrator.scaling.values import Work
from orchestrator.store.database import Transaction
from orchestrator.store.learning import LearntKind, mean_of_all, usual
from orchestrator.store.queue import requirements_of
from orchestrator.store.states import JobState
from orchestrator.store.tables import jobs, learnt

BUCKET_S = 60.0  # jobs that are wanted within the same minute are one piece of work
HORIZON_S = 24 * 3600.0  # what is wanted later counts as wanted then
MAX_WORK = 2000  # pieces, those that are wanted first

# -- work -- Frames that are left, by minute and by required card.
_of_client = learnt.alias()
_frames = sa.func.coalesce(jobs.c.frames, usual(LearntKind.FRAMES, _of_client, UNKNOWN_FRAMES))
_is_running = jobs.c.state == JobState.RUNNING
_left = sa.case((_is_running, _frames * (1.0 - jobs.c.progress)), else_=_frames)
_usual_s = sa.func.coalesce(mean_of_all(LearntKind.SECONDS), UNKNOWN_S)
_wanted = sa.func.coalesce(
    jobs.c.deadline, jobs.c.queued_at + sa.bindparam("target_wait_s", type_=sa.Double) + _usual_s
)
_now, _last = sa.bindparam("now", type_=sa.Double), sa.bindparam("last", type_=sa.Double)
_open = (
    sa.select(
        sa.case((_wanted < _now, _now), (_wanted > _last, _last), else_=_wanted).label("finish_by"),
        jobs.c.min_vram_gb,
        jobs.c.architectures,
        _left.label("frames"),
    )
    .outerjoin(
        _of_client,
        sa.and_(_of_client.c.kind == LearntKind.FRAMES, _of_client.c.name == jobs.c.client),
    )
    .where(jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING)))
).subquery()
_minute = sa.cast((_open.c.finish_by - _now) / BUCKET_S, sa.Integer)
WORK = (
    sa.select(
        sa.func.min(_open.c.finish_by).label("finish_by"),
        _open.c.min_vram_gb,
        _open.c.architectures,
        sa.func.sum(_open.c.frames).label("frames"),
        sa.func.count().label("jobs"),
    )
    .group_by(_minute, _open.c.min_vram_gb, _open.c.architectures)
    .order_by(sa.func.min(_open.c.finish_by))
    .limit(MAX_WORK)
)


def work(tx: Transaction, target_wait_s: float) -> tuple[Work, ...]:
    """Return the work that waits or runs. A job without a deadline is wanted `target_wait_s` and
    the time that it takes after its submission.
    """
    last = tx.now + HORIZON_S
    rows = tx.execute(WORK, now=tx.now, last=last, target_wait_s=target_wait_s).mappings()
    return tuple(
        Work(row["frames"], row["finish_by"], row["jobs"], requirements_of(row)) for row in rows
    )
