"""How many replicas each pool should have, from the frames that wait: pure functions.

1. Up at once: replicas that run or start draw the waiting frames for as long as a further one would
   take to load, and for `drain_s` after that. What they leave over is divided among further
   replicas, of the pool with the cheapest frame first.
2. Down late: a pool shrinks to the most that was needed or worked while it had replicas to spare,
   and only when that has lasted for several of its load times and nothing is being drawn in it.
   Serve chooses the replicas that end without regard to their work.

Replicas that Ray cannot place count for nothing, so that another pool is started in their stead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One pool now.

    `frames_per_s` and `load_s` are those of one replica, and `usd_per_frame` its price.
    `replicas_at_work`: those that something is handed to. `is_stuck`: those that start cannot.
    `at_least` and `at_most` bound the number; with `at_most` 0 the pool is switched off.
    """

    name: str
    frames_per_s: float
    load_s: float
    usd_per_frame: float
    at_least: int
    at_most: int
    running: int = 0
    starting: int = 0
    replicas_at_work: int = 0
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon replicas come and go; `scaling:` of the configuration explains each number."""

    drain_s: float = 60.0
    idle_loads: float = 5.0
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Wish:
    """The replicas that are wanted of a pool, and since when it has had some to spare.

    `most`: the highest need since `spare_since` (seconds of a monotonic clock).
    """

    replicas: int
    spare_since: float | None = None
    most: int = 0


def wishes(
    before: Mapping[str, Wish], pools: Sequence[PoolLoad], frames: float, pace: Pace, now_s: float
) -> dict[str, Wish]:
    """Return what is wanted now, given what was wanted before.

    `frames`: all that wait or are being drawn. A pool without a wish before has its present number.
    """
    needed = needs(pools, frames, pace)
    after = {}
    for pool in pools:
        wish = before.get(pool.name, Wish(pool.running + pool.starting))
        after[pool.name] = _follow(wish, pool, needed[pool.name], pace, now_s)
    return after


def needs(pools: Sequence[PoolLoad], frames: float, pace: Pace) -> dict[str, int]:
    """Return how many replicas of each pool are needed for `frames`, without regard to the past.

    Replicas that load their weights are needed as long as anything waits: if they were given up
    because others catch up, pools would start and stop without ever drawing.
    """
    needed = {pool.name: _bounded(pool, _in_use(pool, frames)) for pool in pools}
    added = 0.0
    for pool in sorted(pools, key=_by_price):
        if pool.is_stuck:
            continue
        left = frames - added - _drawn_by(pools, pace.drain_s + pool.load_s, pace.drain_s)
        if left <= 0:
            break
        present = pool.running + pool.starting
        further = math.ceil(left / (pool.frames_per_s * pace.drain_s))
        room = max(0, pool.at_most - present)
        needed[pool.name] = _bounded(pool, max(needed[pool.name], present + min(further, room)))
        if further <= room:
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
        if pool.at_most
    )


def _bounded(pool: PoolLoad, number: int) -> int:
    return max(pool.at_least, min(pool.at_most, number))


def _follow(wish: Wish, pool: PoolLoad, needed: int, pace: Pace, now_s: float) -> Wish:
    """Return the next wish: higher at once, lower after a long time with replicas to spare."""
    wanted = _bounded(pool, wish.replicas)
    if wanted < wish.replicas and pool.replicas_at_work:
        return wish  # the pool was switched off, and ends what it works on
    if needed >= wanted:
        return Wish(needed)
    if wish.spare_since is None:
        return Wish(wanted, now_s, needed)
    most = max(wish.most, needed)
    idle_s = max(pace.idle_s, pace.idle_loads * pool.load_s)
    if now_s - wish.spare_since < idle_s or pool.replicas_at_work:
        return replace(wish, replicas=wanted, most=most)
    return Wish(most)
