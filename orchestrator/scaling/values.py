"""The facts that scaling decides on, and its decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from orchestrator.gpus import Gpu
from orchestrator.routing.values import ANY_GPU, Requirements
from orchestrator.scaling.learnt import Learnt

FRAMES_PER_MINUTE = 60 * 25  # of finished video at 25 frames/s, MuseTalk's rate

OfferKey = tuple[str, str]
"""(provider, GPU class)"""


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of worker that can be rented.

    `frames_per_s` is what one worker draws, all of its concurrent jobs together. `startup_s` is
    the time after which half of the machines are up. `max_workers` is how many may be wanted.
    """

    provider: str
    gpu_class: str
    gpu: Gpu
    usd_per_hour: float
    frames_per_s: float
    startup_s: float
    max_workers: int

    def __post_init__(self) -> None:
        if self.frames_per_s <= 0:
            raise ValueError("a worker draws more than 0 frames/s")

    @property
    def key(self) -> OfferKey:
        """Return the provider and the GPU class."""
        return self.provider, self.gpu_class

    @property
    def usd_per_minute(self) -> float:
        """Return the dollars for a finished minute of video while the worker is busy."""
        return self.usd_per_hour / 3600 * FRAMES_PER_MINUTE / self.frames_per_s

    def with_learnt(self, speed: Learnt) -> Self:
        """Return the offer with the speed that was learnt of its class; its own is the prior."""
        return replace(self, frames_per_s=speed.frames_per_s(self.frames_per_s))


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs that wait or run, with the frames that are left of them.

    Many jobs may be one `Work`, for example those that are to finish within the same minute.
    `finish_by` is an instant: the deadline, or the submission with the target wait and the time
    that the job takes.
    """

    frames: float
    finish_by: float
    jobs: int = 1
    requires: Requirements = ANY_GPU


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines of one offer.

    `starting_s` has the age in seconds of each machine that has been asked for and is not up.
    `draining` ones only finish their jobs; they still cost money.
    """

    ready: int = 0
    starting_s: tuple[float, ...] = ()
    draining: int = 0

    @property
    def count(self) -> int:
        """Return how many there are that are not draining."""
        return self.ready + len(self.starting_s)


@dataclass(frozen=True, slots=True)
class Observation:
    """What is there at one instant. `work` is in any order."""

    offers: tuple[Offer, ...]
    work: tuple[Work, ...] = ()
    machines: Mapping[OfferKey, Machines] = field(default_factory=dict)

    def machines_of(self, offer: Offer) -> Machines:
        """Return the machines of an offer, of which there may be none."""
        return self.machines.get(offer.key, Machines())


@dataclass(frozen=True, slots=True)
class Trend:
    """What scaling remembers about one offer between two steps.

    `raised_at` is when more were last asked for. Since `surplus_since`, fewer would have sufficed,
    and `surplus_peak` is the highest number that was needed in that time.
    """

    raised_at: float | None = None
    surplus_since: float | None = None
    surplus_peak: int = 0


Memory = Mapping[OfferKey, Trend]


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers of an offer are wanted, and why. `reason` is whole sentences."""

    provider: str
    gpu_class: str
    had: int
    wanted: int
    reason: str
