"""What workers send (docs/protocol.md §2 and §9).

Workers of several releases call, the predecessor's among them. Fields that are not here are
ignored, those that a worker may leave out have a default, and long texts are shortened.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.service.texts import Id, JsonObject, clipped
from orchestrator.store.leases import FailureKind
from orchestrator.store.values import Beat, Completion, Failure, ListedJob, WorkerFacts

MAX_LISTED = 64
Short = Annotated[str, clipped(200)]
Sentence = Annotated[str, clipped(4000)]
Url = Annotated[str, Field(max_length=8192), clipped(8193)]

MainType = Literal["main", "transient", "expensive"]

# Failures that say nothing about the job or about the machine.
INTERRUPTIONS = frozenset({"interrupted", "cancelled"})


class _FromWorker(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Register(_FromWorker):
    """`main/workers/{id}/register`."""

    worker_type: MainType = "main"
    gpu_class: Short | None = None
    provider: Short | None = None
    capacity: int | None = Field(None, ge=1, le=1000)


class Listed(_FromWorker):
    """A job that runs at the worker."""

    musetalk_job_id: Id
    attempt: int | None = None


class _Heartbeat(_FromWorker):
    status: Literal["idle", "busy"] = "idle"
    gpu_class: Short | None = None
    jobs: Annotated[list[Listed], Field(max_length=MAX_LISTED)] | None = None

    def listed(self) -> tuple[ListedJob, ...] | None:
        """Return the jobs that are listed; None if the worker lists none at all."""
        if self.jobs is None:
            return None
        return tuple(ListedJob(job.musetalk_job_id, job.attempt) for job in self.jobs)


class Heartbeat(_Heartbeat):
    """`main/workers/{id}/heartbeat`."""

    current_job_id: Id | None = None
    provider: Short | None = None
    worker_type: MainType = "main"
    system_info: JsonObject | None = None

    def beat(self, worker_id: str) -> Beat:
        """Return it for the store."""
        facts = WorkerFacts(
            worker_id,
            self.worker_type,
            self.provider,
            self.gpu_class,
            system_info=self.system_info,
        )
        return Beat(facts, self.status == "busy", None, self.current_job_id, self.listed())


class BufferHeartbeat(_Heartbeat):
    """`buffer/workers/{id}/heartbeat`."""

    capacity: int | None = Field(None, ge=1, le=1000)
    error: Sentence | None = None

    def beat(self, worker_id: str) -> Beat:
        """Return it for the store."""
        facts = WorkerFacts(worker_id, "buffer", None, self.gpu_class, self.capacity)
        return Beat(facts, self.status == "busy", self.error, None, self.listed())


class BufferClaim(_FromWorker):
    """`buffer/jobs/claim`."""

    worker_id: Id
    wait_s: float = Field(0.0, ge=0, le=30)
    capabilities: JsonObject | None = None

    def facts(self) -> WorkerFacts:
        """Return who claims."""
        return WorkerFacts(self.worker_id, "buffer", capabilities=self.capabilities)


class Claim(BufferClaim):
    """`main/jobs/claim`."""

    worker_type: MainType = "main"
    gpu_class: Short | None = None

    def facts(self) -> WorkerFacts:
        """Return who claims."""
        return WorkerFacts(
            self.worker_id,
            self.worker_type,
            gpu_class=self.gpu_class,
            capabilities=self.capabilities,
        )


class FailureFacts(_FromWorker):
    """What a worker adds to the sentence of a failure (docs/protocol.md §9)."""

    error_type: Short | None = None
    code: Short | None = None
    stage: Short | None = None
    input: Short | None = None
    retryable: bool | None = None

    def kind(self) -> FailureKind:
        """Return what the failure means for the job."""
        if self.code in INTERRUPTIONS:
            return FailureKind.INTERRUPTION
        if self.error_type == "media_error" and not self.retryable:
            return FailureKind.INPUT
        return FailureKind.PROCESSING


class _Report(_FromWorker):
    status: Literal["running", "succeeded", "failed"]
    metrics: JsonObject | None = None
    receipt: JsonObject | None = None
    error: Sentence | None = None
    output_url: Url | None = None
    attempt: int | None = None
    failure: FailureFacts | None = None
    # What was put to the addresses of the claim; absent if the worker stores outputs itself.
    size_bytes: int | None = Field(None, ge=1, alias="bytes")
    sha256: Short | None = None

    def completion(self) -> Completion | None:
        """Return a success for the store; None if its output or its metrics are missing."""
        if self.status != "succeeded" or not self.output_url or not self.metrics:
            return None
        stored = {"bytes": self.size_bytes, "sha256": self.sha256}
        known = {name: value for name, value in stored.items() if value is not None}
        return Completion(self.output_url, {**self.metrics, **known}, self.receipt)

    def failed(self) -> tuple[Failure, FailureKind]:
        """Return a failure for the store. Without further facts, another machine may do the job."""
        error = self.error or "The worker reported a failure without an error."
        if self.failure is None:
            return Failure(error), FailureKind.PROCESSING
        facts = self.failure.model_dump(exclude_none=True)
        return Failure(error, facts), self.failure.kind()


class Report(_Report):
    """`jobs/{id}/progress`."""

    progress: float = Field(0.0, ge=0, le=1)
    phase: Short = "running"
    worker_id: Id


class BufferReport(_Report):
    """`buffer/jobs/{id}/status`."""

    status: Literal["succeeded", "failed"]


class Goodbye(_FromWorker):
    """`main/workers/{id}/goodbye`."""

    reason: Short = "no reason was given"
