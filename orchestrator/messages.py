"""What a worker tells an orchestrator, and is told by it, whatever kind of worker it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

WorkerType = Literal["main", "transient", "expensive"]
Status = Literal["idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """Who a worker says it is. `capacity`: jobs at a time under this one identity."""

    worker_id: str
    gpu_class: str
    worker_type: WorkerType = "main"
    provider: str = "unknown"
    capacity: int = 1
    system_info: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that was handed out, as it came.

    `job_id` is what its end is reported to: `buffer_job_id` for a buffer worker. `payload` is
    not validated beyond having that id; its addresses may be signed, so it stays out of `repr`.
    """

    job_id: str
    payload: Mapping[str, JsonValue] = field(repr=False)

    @property
    def musetalk_job_id(self) -> str:
        """The id that progress is reported to, and that the job has here."""
        named = self.payload.get("musetalk_job_id")
        if isinstance(named, int) and not isinstance(named, bool):
            named = str(named)
        return named if isinstance(named, str) and named else self.job_id

    @property
    def attempt(self) -> int | None:
        """Which handing-out of the job this is; None where the orchestrator does not count."""
        number = self.payload.get("attempt")
        return number if isinstance(number, int) and not isinstance(number, bool) else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. `error`: why the orchestrator has no job for this worker."""

    job: ClaimedJob | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """What an orchestrator asks for in its answer to a heartbeat.

    `cancel`: ids of jobs that are to be stopped. `drain`: claim nothing more.
    """

    cancel: frozenset[str] = frozenset()
    drain: bool = False


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One best-effort progress report of a running job. `fraction`: 0 to 1."""

    fraction: float
    phase: str
    metrics: Mapping[str, JsonValue] | None = None
    config_label: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A finished job. Refuses to exist without an address and metrics (known fault 2)."""

    output_url: str = field(repr=False)
    metrics: Mapping[str, JsonValue]

    def __post_init__(self) -> None:
        if not self.output_url or not self.metrics:
            raise ValueError("a job without output_url and metrics has not succeeded")


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed job. `error` is the job's own sentence; `fraction` how far it came."""

    error: str
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class FinalReport:
    """The request that ends a job, ready to be stored, sent, and sent again unchanged."""

    job_id: str
    path: str
    body: str = field(repr=False)
