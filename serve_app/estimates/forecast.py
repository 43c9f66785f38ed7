"""How long a job takes: the slowest stage decides, with what runs now, and the past corrects that.

    seconds = correction * (what happens once + the first block + other frames * slowest stage)

The correction is the median of what past jobs took over what the same rule says about them, because
stages share processors and disturb each other. Without past jobs it is 1, and only the configured
speeds of the pools count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from musetalk_pipeline.receipts.receipt import HOUR_S, Prices
from serve_app.estimates.past_jobs import PastJob
from serve_app.estimates.speeds import PoolSpeed, Speeds

LEAST_CORRECTION, MOST_CORRECTION = 0.1, 10.0  # beyond that, something else was wrong


@dataclass(frozen=True, slots=True)
class PoolRunners:
    """The replicas of a pool that run now. `frames_per_s`: of one, as the scheduler assumes it."""

    name: str
    running: int
    frames_per_s: float


@dataclass(frozen=True, slots=True)
class Runners:
    """What runs now: replicas of each pool, of which there is one at least, and threads of the two
    stages on the CPU.
    """

    pools: tuple[PoolRunners, ...]
    preparing: int
    composing: int


UNKNOWN_RUNNERS = Runners((PoolRunners("unknown", 1, 1.0),), 1, 1)


@dataclass(frozen=True, slots=True)
class JobLength:
    """The output of a job: its frames, the first of them that are made together, its pixels."""

    frames: int
    first_frames: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds for each frame: of all pools together, and of the slowest stage.

    `shares`: of the frames that each pool draws, 0 to 1. `speeds`: of one replica of each.
    """

    drawing_s: float
    slowest_s: float
    shares: Mapping[str, float]
    speeds: Mapping[str, PoolSpeed]


def rates_of(speeds: Speeds, runners: Runners) -> Rates:
    """Return how fast frames get through the stages."""
    found = {pool.name: _speed_of(pool, speeds) for pool in runners.pools}
    # Replicas that wait for work to start count as one of each pool that may start.
    is_any = any(pool.running for pool in runners.pools)
    rate = {
        pool.name: (pool.running if is_any else 1) / found[pool.name].work_s
        for pool in runners.pools
    }
    total = sum(rate.values())
    drawing_s = 1.0 / total
    slowest_s = max(
        drawing_s,
        speeds.prepare_s / max(1, runners.preparing),
        speeds.compose_s / max(1, runners.composing),
    )
    return Rates(drawing_s, slowest_s, {name: one / total for name, one in rate.items()}, found)


def _speed_of(pool: PoolRunners, speeds: Speeds) -> PoolSpeed:
    known = speeds.pools.get(pool.name)
    if known is not None and known.work_s > 0:
        return known
    seconds = 1.0 / pool.frames_per_s
    return PoolSpeed(seconds, seconds)


def work_s(length: JobLength, speeds: Speeds, rates: Rates) -> float:
    """Return the seconds of a job by the rule above, without the correction."""
    first = min(length.first_frames, length.frames)
    engine_s = min(one.work_s for one in rates.speeds.values())
    first_s = first * (speeds.prepare_s + engine_s + speeds.compose_s)
    return speeds.around.at(length.frames) + first_s + (length.frames - first) * rates.slowest_s


def correction_of(
    jobs: Sequence[PastJob], first_frames: int, speeds: Speeds, rates: Rates
) -> float:
    """Return what the rule has to be multiplied by, from jobs that made all of their avatar."""
    ratios = [
        job.wall_s / work_s(JobLength(job.frames, first_frames, job.pixels or 0), speeds, rates)
        for job in jobs
        if job.made_share == 1.0
    ]
    if not ratios:
        return 1.0
    return min(MOST_CORRECTION, max(LEAST_CORRECTION, median(ratios)))


def cost_usd(length: JobLength, speeds: Speeds, rates: Rates, prices: Prices) -> float | None:
    """Return what a job will cost with the prices of now; None if no price is known."""
    if not prices.are_known:
        return None
    pools = sum(
        share * length.frames * rates.speeds[name].paid_s / HOUR_S * prices.pools.get(name, 0.0)
        for name, share in rates.shares.items()
    )
    stages = {name: line.at(length.frames) for name, line in speeds.stages.items()}
    return pools + prices.of_stages(stages)
