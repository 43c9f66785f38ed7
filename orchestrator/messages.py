"""The values that a worker and an orchestrator exchange, for all kinds of worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

WorkerType = Literal["main", "transient", "expensive"]
Status = Literal["idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """The description of a worker. `capacity` jobs may run at once under its one identity.

    `capabilities` are sent to orchestrators that understand docs/protocol.md §9.
    """

    worker_id: str
    gpu_class: str
    worker_type: WorkerType = "main"
    provider: str = "unknown"
    capacity: int = 1
    system_info: Mapping[str, JsonValue] = field(default_factory=dict)
    capabilities: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputAddresses:
    """Where to put the outputs of one attempt, with `headers`. Whoever has these can use them."""

    video_put_url: str = field(repr=False)
    sidecar_put_url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that was handed out, as it was received.

    Its end is reported to `job_id`, the `buffer_job_id` for a buffer worker. Only that id in
    `payload` has been validated. Its addresses may be signed, so `repr` leaves it out.
    """

    job_id: str
    payload: Mapping[str, JsonValue] = field(repr=False)

    @property
    def musetalk_job_id(self) -> str:
        """The id that progress is reported to, and the id of the job in this worker."""
        named = self.payload.get("musetalk_job_id")
        if isinstance(named, int) and not isinstance(named, bool):
            named = str(named)
        return named if isinstance(named, str) and named else self.job_id

    @property
    def attempt(self) -> int | None:
        """How often the job has been handed out; None if the orchestrator does not count that."""
        number = self.payload.get("attempt")
        return number if isinstance(number, int) and not isinstance(number, bool) else None

    @property
    def output(self) -> OutputAddresses | None:
        """Where to put the outputs; None if this worker has to store them itself."""
        fields = self.payload.get("output")
        if not isinstance(fields, dict):
            return None
        urls = fields.get("video_put_url"), fields.get("sidecar_put_url")
        video, sidecar = (url if isinstance(url, str) else "" for url in urls)
        given = fields.get("headers")
        headers = given if isinstance(given, dict) else {}
        texts = {name: value for name, value in headers.items() if isinstance(value, str)}
        return OutputAddresses(video, sidecar, texts) if video and sidecar else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. `error` says why there is no job for this worker."""

    job: ClaimedJob | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """The requests in the answer to a heartbeat.

    `cancel` has the ids of jobs to cancel. `drain` asks the worker to claim nothing more.
    `has_additions` is whether the orchestrator understands docs/protocol.md §9: the predecessor's
    answers have neither field. `has_outputs` is whether its claims have `output`.
    """

    cancel: frozenset[str] = frozenset()
    drain: bool = False
    has_additions: bool = False
    has_outputs: bool = False


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """One best-effort progress report of a running job. `fraction` is 0 to 1."""

    fraction: float
    phase: str
    metrics: Mapping[str, JsonValue] | None = None
    config_label: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class SuccessReport:
    """The end of a job that succeeded. It needs an address and metrics (known fault 2).

    `receipt`: seconds, frames and dollars of the job, if the worker keeps count. `upload`: `bytes`
    and `sha256` of what was put to the address of the claim.
    """

    output_url: str = field(repr=False)
    metrics: Mapping[str, JsonValue]
    receipt: Mapping[str, JsonValue] | None = None
    upload: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.output_url or not self.metrics:
            raise ValueError("a job without output_url and metrics has not succeeded")


@dataclass(frozen=True, slots=True)
class FailureReport:
    """The end of a job that failed. `error` is its message, `fraction` how far it came.

    `facts` are `error_type`, `code`, `stage`, `input` and `retryable`, as far as they are known.
    Orchestrators that count attempts are told them, and so need not guess who is at fault.
    `receipt`: what the job used until then, if the worker keeps count.
    """

    error: str
    fraction: float = 0.0
    facts: Mapping[str, JsonValue] | None = None
    receipt: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class FinalReport:
    """The request that reports the end of a job. It is stored, and sent unchanged in each try."""

    job_id: str
    path: str
    body: str = field(repr=False)
