"""How long a job takes: the slowest stage decides, with what runs now, and the past corrects that.

    seconds = correction of (what happens once + the first block + the rest of the slowest stage)

What each stage has to do is counted in frames (job_length.py): a job whose avatar has been kept
prepares nothing, and a frame in which nobody speaks may need no drawing.

correction.py says what past jobs took beside what the same rule says about them. Without past jobs
only the configured speeds of the pools count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from musetalk_pipeline.receipts.receipt import HOUR_S, Prices
from serve_app.estimates.job_length import JobLength, whole_job
from serve_app.estimates.speeds import ONCE, OPENING, PoolSpeed, Speeds

BEFORE_FRAMES = ("download", OPENING)  # what is over when a job has been opened


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
class Forecast:
    """What a job takes by the rule, without the correction. `opening_s`: until it has been opened.
    `frames_s`: after that. `shares`: of the drawing that each pool does, 0 to 1.
    """

    opening_s: float
    frames_s: float
    shares: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.opening_s + self.frames_s


def forecast(length: JobLength, speeds: Speeds, runners: Runners) -> Forecast:
    """Return what a job takes by the rule above, with what runs now."""
    pools = pool_speeds(speeds, runners)
    rates, shares = _rates(length, pools, runners)
    stages = speeds.stages_s(length)
    drawing_s = 1.0 / sum(rates.values()) if rates else 0.0
    preparing_s = stages["prepare"] + stages["listen"]
    slowest_s = max(
        drawing_s,
        preparing_s / max(1, runners.preparing),
        stages["compose"] / max(1, runners.composing),
    )
    first = min(1.0, length.first_frames / length.frames)  # the part of the job that it is
    engine_s = min(pool.work_s(length) for pool in pools.values())
    first_s = first * (preparing_s + engine_s + stages["load"] + stages["compose"])
    opening_s = sum(stages[name] for name in BEFORE_FRAMES if name in stages)
    ending_s = sum(stages[name] for name in ONCE if name in stages) - opening_s
    return Forecast(opening_s, first_s + (1.0 - first) * slowest_s + ending_s, shares)


def pool_speeds(speeds: Speeds, runners: Runners) -> dict[str, PoolSpeed]:
    """Return the speeds of what may draw now, those that the scheduler assumes of new pools."""
    return {pool.name: _speed_of(pool, speeds) for pool in runners.pools}


def _rates(
    length: JobLength, pools: Mapping[str, PoolSpeed], runners: Runners
) -> tuple[dict[str, float], dict[str, float]]:
    """Return how many such jobs each pool would draw in a second, and the share of each. Nothing if
    there is nothing to draw.
    """
    # Replicas that wait for work to start count as one of each pool that may start.
    is_any = any(pool.running for pool in runners.pools)
    work_s = {name: pool.work_s(length) for name, pool in pools.items()}
    if not all(work_s.values()):
        return {}, dict.fromkeys(pools, 1.0 / len(pools))
    rates = {
        pool.name: (pool.running if is_any else 1) / work_s[pool.name] for pool in runners.pools
    }
    total = sum(rates.values())
    return rates, {name: rate / total for name, rate in rates.items()}


def _speed_of(pool: PoolRunners, speeds: Speeds) -> PoolSpeed:
    known = speeds.pools.get(pool.name)
    if known is not None and known.draw_s > 0:
        return known
    return PoolSpeed(0.0, 1.0 / pool.frames_per_s)


def frame_s(speeds: Speeds, runners: Runners) -> float:
    """Return the seconds for each frame of a long job that prepares and draws all of them."""
    return forecast(whole_job(1, 0, 0), replace(speeds, once={}), runners).frames_s


def cost_usd(length: JobLength, speeds: Speeds, runners: Runners, prices: Prices) -> float | None:
    """Return what a job will cost with the prices of now; None if no price is known."""
    if not prices.are_known:
        return None
    pools, shares = pool_speeds(speeds, runners), forecast(length, speeds, runners).shares
    paid = sum(
        shares[name] * pool.work_s(length) * pool.paid_share / HOUR_S * prices.pools.get(name, 0.0)
        for name, pool in pools.items()
    )
    return paid + prices.of_stages(speeds.stages_s(length))
