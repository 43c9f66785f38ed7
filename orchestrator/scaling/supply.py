"""Whether the planned workers finish the work in time, and how many more it takes.

Work is treated as a fluid: frames that have to be drawn until an instant, against workers that each
draw at a rate from an instant on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.scaling.values import Work

SOON_S = 60.0  # work that is due sooner would need any number of workers
ROUNDING = 1e-6  # of a worker, or of its work: less is an error of floating-point arithmetic


@dataclass(frozen=True, slots=True)
class Load:
    """`frames` have to be drawn within `within_s` seconds from now."""

    within_s: float
    frames: float


def cumulative_loads(work: Iterable[Work], now: float) -> list[Load]:
    """Return what has to be drawn until each instant at which some work is due.

    Work that is late, or due within a minute, counts as due then.
    """
    loads: list[Load] = []
    frames = 0.0
    for item in sorted(work, key=lambda item: item.finish_by):
        within_s = max(item.finish_by - now, SOON_S)
        frames += item.frames
        if loads and loads[-1].within_s == within_s:
            loads.pop()
        loads.append(Load(within_s, frames))
    return loads


def useful_s(within_s: float, half_up_s: float) -> float:
    """Return the seconds that a machine is expected to be up within the next `within_s`.

    `half_up_s` is 0 for a machine that is up. Otherwise half of the machines come up within it,
    half of the rest in the same time again, and so on: how long one has been starting says nothing
    about when it comes. This is an exponential distribution, integrated.
    """
    if half_up_s <= 0:
        return within_s
    mean_s = half_up_s / math.log(2)
    return within_s + mean_s * math.expm1(-within_s / mean_s)


@dataclass(slots=True)
class Supply:
    """Planned workers, as frames/s by the `half_up_s` of machines that are not up yet, or 0."""

    rates: dict[float, float] = field(default_factory=dict)

    def add(self, frames_per_s: float, half_up_s: float) -> None:
        """Add workers that draw `frames_per_s` together, once they are up."""
        self.rates[half_up_s] = self.rates.get(half_up_s, 0.0) + frames_per_s

    def frames_within(self, within_s: float) -> float:
        """Return the frames that are expected to be drawn within `within_s` from now."""
        return sum(rate * useful_s(within_s, half) for half, rate in self.rates.items())

    def missing(
        self,
        loads: Sequence[Load],
        frames_per_s: float,
        half_up_s: float,
        *,
        min_use_s: float,
        catch_up_s: float | None = None,
    ) -> int:
        """Return how many more workers finish all loads that they can help with in time.

        A worker can help with what is due when it has been up for `min_use_s`, as far as can be
        expected. With `catch_up_s`, loads that are due earlier count as due then.
        """
        most = 0.0
        for load in loads:
            within_s = max(load.within_s, catch_up_s or 0.0)
            useful = useful_s(within_s, half_up_s)
            if useful >= min_use_s:
                left = load.frames - self.frames_within(within_s) - ROUNDING * load.frames
                most = max(most, left / (frames_per_s * useful))
        return math.ceil(most)
