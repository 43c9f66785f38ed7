"""A pool as the scheduler sees it: what runs, what is in flight, how fast it is; and the choice."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Policy = Literal["soonest", "cheapest"]

SLACK = 0.1  # a cheaper pool may finish a call this much later, as a share of the shortest time
ENCODE_COST = 0.5  # of drawing a frame, until it is measured (guess; it depends on the engine)
KEPT = 0.8  # of the past at each measurement; about the last five calls decide
# A window of one call for each replica that runs. Two with a lock in the replica would use 0.99 of
# the time instead of 0.95 to 0.99, but at the end of a queue two calls meet in one replica while
# another idles (0.49), and a deadline would count the wait for the lock.
CALLS_PER_REPLICA = 1


class Kind(StrEnum):
    """The two calls that occupy a Generator replica."""

    ENCODE = "encode"
    GENERATE = "generate"


class Pace:
    """A moving average of frames a second, from real work."""

    def __init__(self) -> None:
        self._frames = 0.0
        self._seconds = 0.0

    @property
    def frames_per_s(self) -> float | None:
        """The average; None before the first measurement."""
        return self._frames / self._seconds if self._frames else None

    def measured(self, frames: int, seconds: float) -> None:
        """Count one call. Calls with more frames weigh more."""
        if frames > 0:
            self._frames = KEPT * self._frames + frames
            self._seconds = KEPT * self._seconds + max(seconds, 1e-6)

    def expected_s(self, frames: int) -> float | None:
        """Return how long a call takes; None before the first measurement."""
        speed = self.frames_per_s
        return None if speed is None else frames / speed


@dataclass(frozen=True, slots=True)
class PoolRates:
    """What the configuration says about a pool.

    `frames_per_s`: of one replica, until it is measured; then only the ratio between pools counts,
    and only for those that have not worked yet. `usd_per_hour`: of one replica.
    """

    name: str
    frames_per_s: float = 1.0
    usd_per_hour: float = 0.0


@dataclass(slots=True, eq=False)
class InFlight:
    """A call that occupies a replica since `started_at` (of the scheduler's clock)."""

    kind: Kind
    frames: int
    started_at: float


@dataclass(slots=True, eq=False)
class PoolState:
    """One pool now.

    `reason`: why none of its replicas runs, for people. `is_on`: whether calls may be handed to it.
    """

    rates: PoolRates
    running: int = 0
    reason: str = ""
    is_on: bool = True
    paces: dict[Kind, Pace] = field(default_factory=lambda: {kind: Pace() for kind in Kind})
    in_flight: set[InFlight] = field(default_factory=set)

    @property
    def frames_in_flight(self) -> int:
        """How many frames its replicas work on."""
        return sum(call.frames for call in self.in_flight)

    def speed(self, kind: Kind, calibration: float = 1.0) -> float:
        """Return frames a second of one replica.

        `calibration`: how much faster other pools are than configured, if this one has no
        measurement yet.
        """
        drawing = self.paces[Kind.GENERATE].frames_per_s
        if drawing is None:
            drawing = self.rates.frames_per_s * calibration
        if kind is Kind.GENERATE:
            return drawing
        return self.paces[Kind.ENCODE].frames_per_s or drawing / ENCODE_COST

    def usd_per_frame(self, calibration: float = 1.0) -> float:
        """Return what one drawn frame costs."""
        return self.rates.usd_per_hour / 3600 / self.speed(Kind.GENERATE, calibration)


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool, for `/health` and metrics."""

    running: int
    calls_in_flight: int
    frames_in_flight: int
    frames_per_s: float


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What the scheduler does now. `waiting_frames`: see `frames_waiting`."""

    waiting_calls: int
    waiting_frames: float
    pools: dict[str, PoolFacts]


def calibration_of(pools: Iterable[PoolState]) -> float:
    """Return the mean ratio of measured to configured speeds; 1 if nothing is measured."""
    ratios = [
        speed / pool.rates.frames_per_s
        for pool in pools
        if (speed := pool.paces[Kind.GENERATE].frames_per_s) is not None
    ]
    return sum(ratios) / len(ratios) if ratios else 1.0


class Forecast:
    """When the replicas of one pool will be free, in seconds from now, calls booked included."""

    def __init__(self, pool: PoolState, now: float, calibration: float) -> None:
        self.name = pool.rates.name
        self.usd_per_frame = pool.usd_per_frame(calibration)
        self._speeds = {kind: pool.speed(kind, calibration) for kind in Kind}
        places = pool.running * CALLS_PER_REPLICA
        busy = sorted(self._left_s(call, now) for call in pool.in_flight)
        # If more is in flight than there are places, those that end first give none back.
        busy = busy[max(0, len(busy) - places) :]
        self._free_at = [0.0] * (places - len(busy)) + busy
        heapq.heapify(self._free_at)

    @property
    def is_open(self) -> bool:
        """Whether a call can start now."""
        return bool(self._free_at) and self._free_at[0] <= 0.0

    def finish_s(self, kind: Kind, frames: int) -> float:
        """Return when a call of that size would end. The pool has at least one replica."""
        return self._free_at[0] + frames / self._speeds[kind]

    def book(self, kind: Kind, frames: int) -> float:
        """Give the call the replica that is free first; return when it starts."""
        starts = self._free_at[0]
        heapq.heapreplace(self._free_at, starts + frames / self._speeds[kind])
        return starts

    def _left_s(self, call: InFlight, now: float) -> float:
        """Return how long a call still takes. One that is overdue takes as long again as it is
        late, so a replica that hangs does not seem free.
        """
        left = call.frames / self._speeds[call.kind] - (now - call.started_at)
        return max(abs(left), 1e-6)


def choose(
    forecasts: Iterable[Forecast], kind: Kind, frames: int, policy: Policy, prefer: str | None
) -> Forecast:
    """Return the pool for a call: the one that finishes it first, the price decides within a slack.

    With the policy `cheapest`, the cheapest pool that has a free replica comes before that. If the
    price leaves a choice, `prefer` decides. `forecasts` are of pools that run, at least one.
    """
    pools = list(forecasts)
    if policy == "cheapest":
        candidates = [pool for pool in pools if pool.is_open]
        if candidates:
            return min(candidates, key=lambda one: _by_price(one, kind, frames, prefer))
    soonest = min(pool.finish_s(kind, frames) for pool in pools)
    latest = soonest * (1.0 + SLACK)
    candidates = [pool for pool in pools if pool.finish_s(kind, frames) <= latest]
    return min(candidates, key=lambda one: _by_price(one, kind, frames, prefer))


def _by_price(
    pool: Forecast, kind: Kind, frames: int, prefer: str | None
) -> tuple[float, bool, float, str]:
    return pool.usd_per_frame, pool.name != prefer, pool.finish_s(kind, frames), pool.name
