"""The one shape of an error answer, whatever rejects the request."""

from typing import Any

from serve_app.contract.codes import hint_of
from serve_app.contract.outcomes import Failure


def error_body(job_id: str, failure: Failure, *, stack_trace: bool = False) -> dict[str, Any]:
    """Return the body of an error, with the failure's stack trace if `stack_trace` is set."""
    body: dict[str, Any] = {
        "status": "failed",
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "code": failure.code,
        "hint": failure.hint or hint_of(failure.code),
        "input": failure.input,
        "stage": failure.stage,
        "details": failure.details,
        "retryable": failure.retryable,
        "stage_times": failure.stage_times,
        "musetalk_job_id": job_id,
    }
    if stack_trace and failure.stack_trace is not None:
        body["stack_trace"] = failure.stack_trace
    return body
