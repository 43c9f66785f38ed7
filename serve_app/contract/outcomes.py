"""What a failed job came to, as a value: one table from error types to status codes.

Imports no web framework, because the job service does not know how its jobs came. `answers.py` puts
outcomes into HTTP.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from musetalk_pipeline.errors import InputName, JobCancelled, MediaError, PipelineError, Stage
from serve_app.telemetry.redact import redact

# Bad input is the caller's (nobody should retry); everything else is this worker's. By type, most
# special first.
HTTP_STATUS: tuple[tuple[type[PipelineError], int], ...] = (
    (MediaError, 422),
    # A 5xx would be tried again by Salad's queue, and the cancelled job done after all.
    (JobCancelled, 409),
    (PipelineError, 500),
)
MAX_TRACE_CHARS = 8000


def failure_of(error: PipelineError, stage_times: dict[str, float]) -> Failure:
    """Return the error's answer; the stack trace goes with 500 only."""
    status = next(code for kind, code in HTTP_STATUS if isinstance(error, kind))
    trace = None
    if status == 500:
        trace = redact("".join(traceback.format_exception(error)))[-MAX_TRACE_CHARS:]
    return Failure(
        error_type=error.error_type,
        error_message=redact(error.message),
        code=error.code,
        stage=str(error.stage),
        retryable=error.retryable,
        status_code=status,
        details=dict(error.details),
        stage_times=stage_times,
        stack_trace=trace,
        cancelled=isinstance(error, JobCancelled),
        hint=error.hint,
        input=error.input,
    )


def refused(
    status_code: int,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    error_type: str = "unknown_error",
    retryable: bool = False,
    **details: Any,
) -> Failure:
    """Return the answer to a request that is not even tried.

    `error_type` is neither the media's nor the worker's unless the caller says so: contracts.md
    gives those two names to jobs that were looked at.
    """
    return Failure(
        error_type=error_type,
        error_message=message,
        code=code,
        stage=str(Stage.VALIDATION),
        retryable=retryable,
        status_code=status_code,
        details=details,
        hint=hint,
    )


def invalid_request(message: str, **details: Any) -> Failure:
    """Return the answer to a request that does not say what is wanted."""
    return refused(422, "invalid_request", message, **details)


def busy(status_code: int, code: str, message: str) -> Failure:
    """Return the answer while this worker cannot take a request. The caller comes again."""
    failure = refused(status_code, code, message, error_type="processing_error", retryable=True)
    return replace(failure, stage=str(Stage.UNKNOWN))


def state_unavailable() -> Failure:
    """Return the answer while the registry cannot be written or read. The caller comes again."""
    message = "This worker cannot store jobs at the moment. Send the job again later."
    return busy(503, "state_unavailable", message)


def job_ended(status: str) -> Failure:
    """Return the answer to the cancellation of a job that has ended with `status`."""
    ended = _ENDED.get(status, "ended")
    message = f"The job has {ended} already and stays as it is."
    return refused(409, "job_ended", message, status=status)


_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


class Phase(StrEnum):
    """What a running job is doing; the names but one are the orchestrator's."""

    QUEUED = "queued"
    PREPARING = "preparing"
    DOWNLOADING = "downloading"
    VALIDATING = "validating"  # ours; to the orchestrator it is a part of downloading
    INFERRING = "inferring"
    ENCODING = "encoding"
    UPLOADING = "uploading"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def reported(self) -> Phase:
        """The phase by a name that the orchestrator knows."""
        return Phase.DOWNLOADING if self is Phase.VALIDATING else self


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's state while it runs. `fraction` 0 to 1 never goes back. `stage_seconds` are work, not
    waiting. `frames_done` are drawn. `eta_s` is what is left at the rate so far, None until it is
    known.
    """

    phase: Phase
    fraction: float
    frames_done: int = 0
    frames_total: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """`metrics` is exactly what contracts.md puts under `metrics`; never empty. `warnings` are
    sentences about what the run itself decided, such as which of two faces speaks.
    """

    output_url: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Everything of contracts.md's error answer but the job id. `status_code`: 422 or 500."""

    error_type: str
    error_message: str
    code: str
    stage: str
    retryable: bool
    status_code: int
    details: dict[str, Any] = field(default_factory=dict)
    stage_times: dict[str, float] = field(default_factory=dict)
    stack_trace: str | None = None
    cancelled: bool = False
    hint: str | None = None
    input: InputName | None = None


Outcome = Success | Failure


JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
