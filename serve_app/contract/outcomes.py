"""The outcome of a job as a value, and one table from error types to status codes.

This module imports no web framework, because the job service does not depend on HTTP.
`api/answers.py` turns outcomes into HTTP answers.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from musetalk_pipeline.errors import InputName, JobCancelled, MediaError, PipelineError, Stage
from serve_app.contract.codes import ErrorCode
from serve_app.telemetry.redact import redact

# Bad input is the caller's fault and should not be retried; everything else is this worker's fault.
# The most specific types come first.
HTTP_STATUS: tuple[tuple[type[PipelineError], int], ...] = (
    (MediaError, 422),
    # Salad's queue would retry a 5xx, and so run the cancelled job after all.
    (JobCancelled, 409),
    (PipelineError, 500),
)
MAX_TRACE_CHARS = 8000


def failure_of(
    error: PipelineError, stage_times: dict[str, float], receipt: dict[str, Any] | None = None
) -> Failure:
    """Return the failure that an error means; only a 500 carries the stack trace. `receipt`: of
    what was spent until then.
    """
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
        receipt=receipt,
    )


def rejected(
    status_code: int,
    code: ErrorCode,
    message: str,
    *,
    hint: str | None = None,
    error_type: str = "unknown_error",
    retryable: bool = False,
    **details: Any,
) -> Failure:
    """Return the answer to a request that is rejected before any job begins.

    `error_type` blames neither the media nor the worker unless the caller says so:
    docs/protocol.md §1 reserves those two names for jobs that were examined.
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
    """Return the answer to a request with a missing or wrong field."""
    return rejected(422, "invalid_request", message, **details)


def busy(status_code: int, code: ErrorCode, message: str) -> Failure:
    """Return the answer while this worker cannot take a request. The caller may try again."""
    failure = rejected(status_code, code, message, error_type="processing_error", retryable=True)
    return replace(failure, stage=str(Stage.UNKNOWN))


def state_unavailable() -> Failure:
    """Return the answer while the registry cannot be read or written. The caller may try again."""
    message = "This worker cannot store jobs at the moment. Send the job again later."
    return busy(503, "state_unavailable", message)


def job_ended(status: str) -> Failure:
    """Return the answer to a request to cancel a job that has ended with `status`."""
    ended = _ENDED.get(status, "ended")
    message = f"The job has already {ended}."
    return rejected(409, "job_ended", message, status=status)


_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


class Phase(StrEnum):
    """What a running job is doing; all names but `validating` are the orchestrator's."""

    QUEUED = "queued"
    PREPARING = "preparing"
    DOWNLOADING = "downloading"
    VALIDATING = "validating"  # ours; the orchestrator receives `downloading`
    INFERRING = "inferring"
    ENCODING = "encoding"
    UPLOADING = "uploading"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def reported(self) -> Phase:
        """The phase by one of the orchestrator's names."""
        return Phase.DOWNLOADING if self is Phase.VALIDATING else self


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's state while it runs.

    `fraction` runs from 0 to 1 and never decreases. `stage_seconds` count work and not waiting.
    `frames_done` counts the frames that are drawn. `eta_s` is the remaining time at the rate so
    far, None until it is known. `receipt`: of a job that ends early, in its last progress.
    """

    phase: Phase
    fraction: float
    frames_done: int = 0
    frames_total: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    receipt: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """A finished video.

    `metrics` is exactly what docs/protocol.md puts under `metrics` and is never empty. `warnings`
    are sentences about what the run itself decided, such as which of two faces speaks.
    """

    output_url: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """The error answer of docs/protocol.md §1 without the job id. `status_code`: 422 or 500.

    `receipt`: of what the job used until then; None if it never began.
    """

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
    receipt: dict[str, Any] | None = None


Outcome = Success | Failure
