"""Outcomes as contracts.md says them over HTTP: one table from error types to status codes.

Every error of every route has the shape of `error_body`, whatever refuses the request.
"""

import traceback
from datetime import UTC, datetime
from typing import Any

from musetalk_pipeline.errors import (
    JobCancelled,
    MediaError,
    PipelineError,
    Stage,
)
from serve_app.callers import Refusal
from serve_app.codes import hint_of
from serve_app.jobs import Job
from serve_app.links import Links
from serve_app.redact import redact, shown_url
from serve_app.schemas import Failure, Outcome, Success

# Bad input is the caller's (nobody should retry); everything else is this worker's. By type, most
# special first.
HTTP_STATUS: tuple[tuple[type[PipelineError], int], ...] = (
    (MediaError, 422),
    (PipelineError, 500),
)
MAX_TRACE_CHARS = 8000
OLDER_NAMES = ("b2_bucket", "b2_file_name")


def failure_of(error: PipelineError, stage_times: dict[str, float]) -> Failure:
    """Return the error's answer; the stack trace goes with 500 only."""
    status = next(code for kind, code in HTTP_STATUS if isinstance(error, kind))
    trace = None
    if status == 500 and not isinstance(error, JobCancelled):
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


def refusal_body(refusal: Refusal) -> dict[str, Any]:
    """Return the body of the answer to a request that is not let in now, or not at all."""
    is_passing = refusal.status_code in (408, 429, 503)
    failure = refused(
        refusal.status_code,
        refusal.code,
        refusal.message,
        hint=refusal.hint,
        error_type="processing_error" if refusal.status_code == 503 else "unknown_error",
        retryable=is_passing,
    )
    return error_body("", failure)


def generate_body(
    job_id: str, outcome: Outcome, warnings: tuple[str, ...] = (), links: Links | None = None
) -> dict[str, Any]:
    """Return the body of `POST /generate`'s answer; `warnings` are those of the request.

    Without `links` the output is named as its store named it.
    """
    if isinstance(outcome, Failure):
        return error_body(job_id, outcome)
    # An older form of the answer, which some clients still read, has these at the top.
    older = {name: outcome.metrics[name] for name in OLDER_NAMES if name in outcome.metrics}
    return {
        "status": "success",
        "output_url": _output_url(outcome, links),
        "musetalk_job_id": job_id,
        "metrics": outcome.metrics,
        "error": None,
        "warnings": [*warnings, *outcome.warnings],
        **older,
    }


def error_body(job_id: str, failure: Failure, *, stack_trace: bool = False) -> dict[str, Any]:
    """Return the body of an error; `stack_trace`: with the trace, if the failure has one."""
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


def job_body(job: Job, links: Links | None = None) -> dict[str, Any]:
    """Return contracts.md §3's shape, and the progress."""
    outcome = job.outcome
    failure = None
    if isinstance(outcome, Failure):
        names = ("error_type", "code", "input", "stage", "details", "retryable")
        failure = {name: getattr(outcome, name) for name in names}
        failure["hint"] = outcome.hint or hint_of(outcome.code)
    request = job.request
    return {
        "id": job.id,
        "status": job.status,
        "output_url": _output_url(outcome, links),
        "metrics": outcome.metrics if isinstance(outcome, Success) else None,
        "error": outcome.error_message if isinstance(outcome, Failure) else None,
        "failure": failure,
        "warnings": [*job.warnings, *(outcome.warnings if isinstance(outcome, Success) else ())],
        "input": {
            # Signed query strings stay on this worker.
            "video_url": shown_url(request.video_url),
            "audio_url": shown_url(request.audio_url),
            "aspect_ratio": request.aspect_ratio,
            "resolution": request.resolution,
            "params": request.params.model_dump(exclude_none=True),
        },
        "progress": {
            "phase": str(job.progress.phase),
            "fraction": round(job.progress.fraction, 4),
            "frames_done": job.progress.frames_done,
            "frames_total": job.progress.frames_total,
            "stage_seconds": job.progress.stage_seconds,
        },
        "attempt": job.attempt,
        "metadata": job.metadata,
        "created_at": _utc(job.created),
        "updated_at": _utc(job.updated),
    }


def _output_url(outcome: Outcome | None, links: Links | None) -> str | None:
    if not isinstance(outcome, Success):
        return None
    return links.link(outcome.output_url) if links else outcome.output_url


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
