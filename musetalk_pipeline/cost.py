"""What the calls of stages cost, kept apart from the values that they return.

A stage returns a `Measured` value. The same call may reach whoever sums up a job's costs more than
once, because several segments draw on one block. Each call has an id, so that it counts once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

StageName = Literal[
    "download", "validation", "load", "prepare", "encode", "listen", "generate", "compose"
]

# Answers and sidecars have one name for all that the engine does.
_PUBLISHED = {"encode": "inference", "generate": "inference"}


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one call of a stage cost.

    `seconds`: of wall time. `frames`: that it worked on; 0 if it does not work on frames.
    `peak_memory_mib`: of GPU memory while it ran; None on a CPU. `replica`: the one that ran it;
    None in a single process. `call_id`: random, one for each call.
    """

    stage: StageName
    seconds: float
    frames: int
    peak_memory_mib: float | None = None
    replica: str | None = None
    call_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        return f"{self.stage}: {self.frames} frames in {self.seconds:.2f} s by {self.replica}"

    @property
    def published_stage(self) -> str:
        """The name under which answers, progress and sidecars give these seconds."""
        return _PUBLISHED.get(self.stage, self.stage)


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    """A stage's value, and the costs of its call and of the calls that made its inputs."""

    value: T
    costs: tuple[StageCost, ...]

    @property
    def own(self) -> StageCost:
        """The cost of the call that made this value."""
        return self.costs[-1]

    def on(self, replica: str, peak_memory_mib: float | None = None) -> Measured[T]:
        """Return the same with the facts that only the caller of the stage has."""
        own = replace(self.own, replica=replica, peak_memory_mib=peak_memory_mib)
        return Measured(self.value, (*self.costs[:-1], own))


def measure(
    stage: StageName, frames: int, call: Callable[[], T], inputs: Iterable[Measured[Any]] = ()
) -> Measured[T]:
    """Call a stage in this thread and measure it. `inputs`: what it works on."""
    before = tuple(cost for measured in inputs for cost in measured.costs)
    started = time.monotonic()
    value = call()
    return Measured(value, (*before, StageCost(stage, time.monotonic() - started, frames)))


class CostSum:
    """The costs of a job so far. A call that is added twice counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # by published stage
        self.peak_memory_mib: float | None = None
        self._counted: set[str] = set()

    def add(self, costs: Iterable[StageCost]) -> None:
        """Count the calls that have not been counted yet."""
        for cost in costs:
            if cost.call_id in self._counted:
                continue
            self._counted.add(cost.call_id)
            self.add_seconds(cost.published_stage, cost.seconds)
            if cost.peak_memory_mib is not None:
                self.peak_memory_mib = max(self.peak_memory_mib or 0.0, cost.peak_memory_mib)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count seconds of something that is not a call of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
