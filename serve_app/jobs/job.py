"""A job as the registry knows it: its values, how it came in, and what makes two jobs the same."""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from serve_app.contract.outcomes import Failure, JobStatus, Outcome, Progress
from serve_app.contract.requests import JobRequest

TERMINAL = ("succeeded", "failed", "cancelled")


class Origin(StrEnum):
    """How a job came in, which decides who may end it."""

    SYNC = "sync"  # POST /generate: wanted while a connection waits
    ASYNC = "async"  # POST /v1/avatar/jobs: wanted until cancelled
    CLAIMED = "claimed"  # from the orchestrator: reported back by the attempt that claimed it


class Verdict(StrEnum):
    """What `beat` tells a running attempt."""

    GO_ON = "go_on"
    CANCELLED = "cancelled"
    LOST = "lost"


class JobConflict(Exception):
    """The id is taken by a job with different content. Choose another id."""


class QueueFull(Exception):
    """As many jobs wait as the configuration allows. Try again later."""


class TooManyJoined(Exception):
    """The job has as many webhooks, or idempotency keys, as one job may have. Enter another."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the registry.

    `run` counts how often the job was entered; attempts are counted within a run. `warnings` are
    the ticket's; a success has the run's own beside them. `queue_position` is 1 for the job that
    is next, and None unless the job is queued.
    """

    id: str
    request: JobRequest
    origin: Origin
    status: JobStatus
    created: float  # Unix seconds
    updated: float
    run: int
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
class Ticket:
    """What comes with a job beside its request.

    `warnings` are sentences about what was not understood and replaced by a default; they are
    given back in the answer. `queue_job_id` is the id that Salad's queue has for the job.
    """

    webhook_url: str | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()
    queue_job_id: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseEvent:
    """A change of phase of one attempt. `number` counts up within a run of the job."""

    number: int
    attempt: int
    happened: float  # Unix seconds
    progress: Progress


@dataclass(frozen=True, slots=True)
class Followed:
    """A job and the changes of phase that a reader has not seen yet, as of one moment."""

    job: Job
    events: tuple[PhaseEvent, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and whether there are more behind them."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class News:
    """A job that has ended and a target that is to be told. `metadata` came with that target."""

    job: Job
    webhook_url: str
    metadata: dict[str, Any] | None


CANCELLED = Failure(
    error_type="processing_error",
    error_message="The job was cancelled before it finished.",
    code="cancelled",
    stage="unknown",
    retryable=False,
    # A 5xx would be tried again by Salad's queue, and the cancelled job done after all.
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


def content_key(request: JobRequest) -> str:
    """Return a digest of all that decides the output, the job id excepted.

    Addresses count without query and fragment: the same file comes again under a new signature.
    """
    content = request.model_dump(mode="json", exclude={"musetalk_job_id"})
    for name in ("video_url", "audio_url"):
        content[name] = _unsigned(content[name])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unsigned(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return [url]  # no address at all; the download says so
    # The host alone does not depend on case; user and port stay as they are written.
    user, at, host = parts.netloc.rpartition("@")
    return [parts.scheme.lower(), user + at + host.lower(), parts.path]
