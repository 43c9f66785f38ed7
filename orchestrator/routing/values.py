"""The facts that routing decides on. They hold only what a decision needs, not whole rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.gpus import Gpu

MAX_PRIORITY = 9


class Tier(StrEnum):
    """The tiers of workers, in their order of preference while no prices are known.

    The first three are the `worker_type` of main workers; `buffer` workers are machines of our own.
    """

    MAIN = "main"
    TRANSIENT = "transient"
    EXPENSIVE = "expensive"
    BUFFER = "buffer"


@dataclass(frozen=True, slots=True)
class Requirements:
    """The cards that a job may run on. An empty set of architectures means all of them."""

    min_vram_gb: float = 0.0
    architectures: frozenset[str] = frozenset()

    def are_met_by(self, gpu: Gpu) -> bool:
        """Return whether the job may run there. A fact that is not known does not meet any."""
        if self.architectures and gpu.architecture not in self.architectures:
            return False
        return self.min_vram_gb <= 0 or (gpu.vram_gb or 0.0) >= self.min_vram_gb


ANY_GPU = Requirements()


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that waits.

    `submitted_at` and `deadline` are instants in seconds of the database's clock. `submitted_at`
    is the job's first submission: an interrupted job keeps its place. `expected_s` are the seconds
    that it will probably take on a worker. `failed_on` has the workers where it failed.
    """

    job_id: str
    client: str
    submitted_at: float
    priority: int = 5
    deadline: float | None = None
    expected_s: float = 60.0
    requires: Requirements = ANY_GPU
    failed_on: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise ValueError(f"a priority is 0 to {MAX_PRIORITY}, not {self.priority}")


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that could take a job. `free` is the number of jobs that it could start now."""

    worker_id: str
    tier: Tier
    provider: str
    gpu_class: str
    gpu: Gpu
    free: int = 1


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """All live workers of one kind: those that beat in time and are not asked to drain."""

    tier: Tier
    provider: str
    gpu_class: str
    gpu: Gpu
    live: int


@dataclass(frozen=True, slots=True)
class Account:
    """How much service a client has had.

    `used` is its virtual time: the seconds of its jobs, each divided by `weight`. A client with
    weight 2 gets twice the service of a client with weight 1 while both have jobs.
    """

    weight: float = 1.0
    used: float = 0.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError("the weight of a client is more than 0")


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts of all clients that have jobs. A client without an account has a new one.

    `clock` is the virtual time at which the last job was given out. A client that had no jobs for
    a while starts from there, so it can neither save up service nor owe any for having been alone.
    """

    clock: float = 0.0
    clients: Mapping[str, Account] = field(default_factory=dict)

    def start_of(self, client: str) -> float:
        """Return the virtual time at which the client's next job starts. The lowest is first."""
        return max(self.clock, self.clients.get(client, Account()).used)


Prices = Mapping[tuple[str, str], float]
"""Dollars for a finished minute of video, by (provider, GPU class)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision needs in addition to the worker and the jobs.

    `queue_length` is the number of all jobs that wait, not only of the candidates.
    """

    queue_length: int
    groups: tuple[WorkerGroup, ...]
    accounts: Accounts = field(default_factory=Accounts)
    prices: Prices = field(default_factory=dict)
