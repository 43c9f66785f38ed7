"""A job as the registry stores it, and how it was submitted."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.job_api.described import JobStatus
from orchestrator.messages import OutputAddresses
from serve_app.contract.outcomes import Failure, Outcome, Progress
from serve_app.contract.requests import JobRequest

USUAL_PRIORITY = 5  # of 0 to 9
TERMINAL = ("succeeded", "failed", "cancelled")

# Receives the progress of one job. It is called in the event loop's thread and returns at once.
ProgressCallback = Callable[[Progress], None]


class Origin(StrEnum):
    """How a job was submitted. This decides who may end it."""

    SYNC = "sync"  # POST /generate: kept alive by open connections
    ASYNC = "async"  # POST /v1/avatar/jobs: runs until it is cancelled
    CLAIMED = "claimed"  # from the orchestrator, and reported back to it


class Verdict(StrEnum):
    """How an attempt continues after a beat."""

    GO_ON = "go_on"
    CANCELLED = "cancelled"
    LOST = "lost"


class WorkerStopping(Exception):
    """The worker stops, and the job that was waited for stays in its queue for the next start."""


class TooManyJoined(Exception):
    """The job has as many webhooks or idempotency keys as one job may have. Use another id."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the registry.

    `run` counts the submissions that started the job again. `number` counts all attempts and never
    falls; `attempt` counts those of this run that were not put back.
    `warnings` are those of the submission; the run's own are in its outcome. `queue_position` is 1
    for the next job, and None unless the job is queued.
    """

    id: str
    request: JobRequest
    origin: Origin
    status: JobStatus
    created: float  # Unix seconds
    updated: float
    run: int
    number: int
    attempt: int
    attempt_id: str | None
    lost_attempt_id: str | None
    progress: Progress
    outcome: Outcome | None
    metadata: dict[str, Any] | None
    warnings: tuple[str, ...]
    queue_job_id: str | None
    queue_position: int | None

    @property
    def is_terminal(self) -> bool:
        """Whether the outcome is final."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class SubmissionOptions:
    """What a caller sends with a job in addition to its request.

    `warnings` are sentences about values that were replaced by a default. They are part of the
    answer. `queue_job_id` is the id of the job in Salad's queue. `output` is where the orchestrator
    wants the outputs of this claim; it is not stored.
    """

    webhook_url: str | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()
    queue_job_id: str | None = None
    output: OutputAddresses | None = None
    priority: int = USUAL_PRIORITY


@dataclass(frozen=True, slots=True)
class PhaseEvent:
    """A change of phase of one attempt. `number` counts all events of the job."""

    number: int
    attempt: int
    happened: float  # Unix seconds
    progress: Progress


@dataclass(frozen=True, slots=True)
class Followed:
    """A job and its changes of phase since the last read, as of one moment."""

    job: Job
    events: tuple[PhaseEvent, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and the cursor of the next page; None on the last one."""

    jobs: tuple[Job, ...]
    next_cursor: tuple[float, str] | None


CANCELLED = Failure(
    error_type="processing_error",
    error_message="The job was cancelled before it finished.",
    code="cancelled",
    stage="unknown",
    retryable=False,
    # Salad's queue repeats a job that is answered 5xx. A cancelled job would run after all.
    status_code=409,
    cancelled=True,
)
ABANDONED = Failure(
    error_type="processing_error",
    error_message="The worker was interrupted each time that it started this job. Send it again.",
    code="abandoned",
    stage="unknown",
    retryable=True,
    status_code=500,
)
