"""What a failed job came to, as a value: one table from error types to status codes.

Imports no web framework, because the job service does not know how its jobs came. `answers.py` puts
outcomes into HTTP.
"""

import traceback
from typing import Any

from musetalk_pipeline.errors import JobCancelled, MediaError, PipelineError, Stage
from serve_app.redact import redact
from serve_app.schemas import Failure

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


def state_unavailable() -> Failure:
    """Return the answer while the registry cannot be written or read. The caller comes again."""
    return Failure(
        error_type="processing_error",
        error_message="This worker cannot store jobs at the moment. Send the job again later.",
        code="state_unavailable",
        stage=str(Stage.UNKNOWN),
        retryable=True,
        status_code=503,
        hint="The operator should look at the free space and the owner of the state folder.",
    )


def job_ended(status: str) -> Failure:
    """Return the answer to the cancellation of a job that has ended with `status`."""
    return Failure(
        error_type="processing_error",
        error_message=f"The job has {_ENDED.get(status, 'ended')} already and stays as it is.",
        code="job_ended",
        stage=str(Stage.UNKNOWN),
        retryable=False,
        status_code=409,
        details={"status": status},
        hint="Only a job that is queued or running can be cancelled.",
    )


_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}
