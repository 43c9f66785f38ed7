"""How many replicas of a CPU stage are needed for the calls that wait for its threads.

The queue of a stage is short, because few segments are in flight at a time. So its length says
little, and its lasting says all: calls that have waited for as long as a further replica would take
to start are a reason to start it. A burst at the beginning of a job is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve_app.scaling.wishes import Bounds, Pace, Wish


@dataclass(frozen=True, slots=True)
class StageLoad:
    """One stage now. `threads`: of a replica. `calls`: all, of which `calls_waiting` have none."""

    threads: int
    load_s: float
    bounds: Bounds
    running: int = 0
    starting: int = 0
    calls: int = 0
    calls_waiting: int = 0


@dataclass(frozen=True, slots=True)
class StageWish:
    """The wish for a stage. `short_since`: when calls began to wait without a pause."""

    wish: Wish
    short_since: float | None = None


def stage_wish(before: StageWish | None, stage: StageLoad, pace: Pace, now_s: float) -> StageWish:
    """Return what is wanted now, given what was wanted before."""
    if before is None:
        before = StageWish(Wish(stage.running + stage.starting))
    short_since = before.short_since
    if not stage.calls_waiting:
        short_since = None
    elif short_since is None:
        short_since = now_s
    is_short = short_since is not None and now_s - short_since >= stage.load_s
    wish = before.wish.following(
        stage.bounds.applied(_needed(stage, is_short)),
        stage.bounds,
        is_at_work=stage.calls > 0,
        patience_s=pace.patience_s(stage.load_s),
        now_s=now_s,
    )
    return StageWish(wish, short_since)


def _needed(stage: StageLoad, is_short: bool) -> int:
    enough = math.ceil(stage.calls / stage.threads)
    if is_short:
        return max(enough, stage.running + stage.starting)
    working = min(enough, stage.running)
    return working + (stage.starting if stage.calls_waiting else 0)
