"""Outcomes as contracts.md says them over HTTP: one table from error types to status codes."""

import traceback
from typing import Any

from musetalk_pipeline.errors import (
    JobCancelled,
    MediaError,
    PipelineError,
    Stage,
)
from serve_app.redact import redact_text
from serve_app.schemas import Failure, Outcome, Success

# Bad input is the caller's (nobody should retry); everything else is this worker's. By type, most
# special first.
HTTP_STATUS: tuple[tuple[type[PipelineError], int], ...] = (
    (MediaError, 422),
    (PipelineError, 500),
)
MAX_TRACE_CHARS = 8000


def failure_of(error: PipelineError, stage_times: dict[str, float]) -> Failure:
    """Return the error's answer; the stack trace goes with 500 only."""
    status = next(code for kind, code in HTTP_STATUS if isinstance(error, kind))
    trace = None
    if status == 500 and not isinstance(error, JobCancelled):
        trace = redact_text("".join(traceback.format_exception(error)))[-MAX_TRACE_CHARS:]
    return Failure(
        error_type=error.error_type,
        error_message=redact_text(error.message),
        code=error.code,
        stage=str(error.stage),
        retryable=error.retryable,
        status_code=status,
        details=dict(error.details),
        stage_times=stage_times,
        stack_trace=trace,
        cancelled=isinstance(error, JobCancelled),
    )


def invalid_request(message: str, **details: Any) -> Failure:
    """Return the answer to a request that does not say what is wanted."""
    return Failure(
        error_type="media_error",
        error_message=message,
        code="invalid_request",
        stage=str(Stage.VALIDATION),
        retryable=False,
        status_code=422,
        details=details,
    )


def generate_body(job_id: str, outcome: Outcome) -> dict[str, Any]:
    """Return the body of `POST /generate`'s answer."""
    if isinstance(outcome, Success):
        return {
            "status": "success",
            "output_url": outcome.output_url,
            "musetalk_job_id": job_id,
            "metrics": outcome.metrics,
        }
    body: dict[str, Any] = {
        "status": "failed",
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "code": outcome.code,
        "stage": outcome.stage,
        "details": outcome.details,
        "retryable": outcome.retryable,
        "stage_times": outcome.stage_times,
        "musetalk_job_id": job_id,
    }
    if outcome.stack_trace is not None:
        body["stack_trace"] = outcome.stack_trace
    return body
