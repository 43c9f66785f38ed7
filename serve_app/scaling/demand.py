"""How many replicas each pool needs for the frames that wait: pure functions.

Replicas that run or start draw them for as long as a further one would take to load, and for
`drain_s` after that. What they leave over is divided among further replicas, of the pool with the
cheapest frame first. Replicas that Ray cannot place count for nothing, so that another pool is
started in their stead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.scaling.wishes import Bounds, Pace, Wish


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One pool now.

    `frames_per_s` and `load_s` are those of one replica, and `usd_per_frame` its price.
    `replicas_at_work`: those that something is handed to. `is_stuck`: those that start cannot.
    `is_speed_known`: the speed was measured or configured. A wild guess starts one replica only,
    because many might be started for a job that one draws in seconds.
    """

    name: str
    frames_per_s: float
    load_s: float
    usd_per_frame: float
    bounds: Bounds
    running: int = 0
    starting: int = 0
    replicas_at_work: int = 0
    is_stuck: bool = False
    is_speed_known: bool = True

    @property
    def most(self) -> int:
        """The replicas that may be started for what waits."""
        return self.bounds.at_most if self.is_speed_known else min(1, self.bounds.at_most)

    @property
    def present(self) -> int:
        """The replicas that run or start."""
        return self.running + self.starting


def pool_wishes(
    before: Mapping[str, Wish], pools: Sequence[PoolLoad], frames: float, pace: Pace, now_s: float
) -> dict[str, Wish]:
    """Return what is wanted now, given what was wanted before.

    `frames`: all that wait or are being drawn. A pool without a wish before has its present number.
    """
    needed = needs(pools, frames, pace)
    return {
        pool.name: before.get(pool.name, Wish(pool.present)).following(
            needed[pool.name],
            pool.bounds,
            is_at_work=pool.replicas_at_work > 0,
            patience_s=pace.patience_s(pool.load_s),
            now_s=now_s,
        )
        for pool in pools
    }


def needs(pools: Sequence[PoolLoad], frames: float, pace: Pace) -> dict[str, int]:
    """Return how many replicas of each pool are needed for `frames`, without regard to the past.

    Replicas that load their weights are needed as long as anything waits: if they were given up
    because others catch up, pools would start and stop without ever drawing.
    """
    needed = {pool.name: pool.bounds.applied(_in_use(pool, frames)) for pool in pools}
    added = 0.0
    for pool in sorted(pools, key=_by_price):
        if pool.is_stuck:
            continue
        left = frames - added - _drawn_by(pools, pace.drain_s + pool.load_s, pace.drain_s)
        if left <= 0:
            break
        room = max(0, pool.most - pool.present)
        further = math.ceil(left / (pool.frames_per_s * pace.drain_s))
        if room:
            needed[pool.name] = pool.bounds.applied(pool.present + min(further, room))
        if further <= room or not pool.is_speed_known:
            break
        added += room * pool.frames_per_s * pace.drain_s
    return needed


def _in_use(pool: PoolLoad, frames: float) -> int:
    return pool.replicas_at_work + (pool.starting if frames > 0 else 0)


def _by_price(pool: PoolLoad) -> tuple[float, float]:
    return pool.usd_per_frame, -pool.frames_per_s


def _drawn_by(pools: Iterable[PoolLoad], running_s: float, starting_s: float) -> float:
    """Return the frames that the present replicas draw in these times."""
    return sum(
        pool.frames_per_s
        * (pool.running * running_s + (0 if pool.is_stuck else pool.starting * starting_s))
        for pool in pools
        if pool.bounds.at_most
    )
