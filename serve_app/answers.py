"""Outcomes as contracts.md says them over HTTP."""

from datetime import UTC, datetime
from typing import Any

from fastapi.responses import JSONResponse

from serve_app.job import Job
from serve_app.redact import shown_url
from serve_app.schemas import Failure, Outcome, Success


def generate_body(job_id: str, outcome: Outcome, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the body of `POST /generate`'s answer; `warnings` are those of the request."""
    if isinstance(outcome, Success):
        return {
            "status": "success",
            "output_url": outcome.output_url,
            "musetalk_job_id": job_id,
            "metrics": outcome.metrics,
            "warnings": [*warnings, *outcome.warnings],
        }
    body: dict[str, Any] = {
        "status": "failed",
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "code": outcome.code,
        "hint": outcome.hint,
        "input": outcome.input,
        "stage": outcome.stage,
        "details": outcome.details,
        "retryable": outcome.retryable,
        "stage_times": outcome.stage_times,
        "musetalk_job_id": job_id,
    }
    if outcome.stack_trace is not None:
        body["stack_trace"] = outcome.stack_trace
    return body


def generate_answer(job: Job) -> JSONResponse:
    """Return the whole answer of `POST /generate` for a job that has ended."""
    assert job.outcome is not None
    status = job.outcome.status_code if isinstance(job.outcome, Failure) else 200
    return JSONResponse(generate_body(job.id, job.outcome, job.warnings), status)


def job_body(job: Job) -> dict[str, Any]:
    """Return contracts.md §3's shape, and the progress."""
    outcome = job.outcome
    failure = None
    if isinstance(outcome, Failure):
        names = ("error_type", "code", "stage", "details", "retryable")
        failure = {name: getattr(outcome, name) for name in names}
    request = job.request
    return {
        "id": job.id,
        "status": job.status,
        "output_url": outcome.output_url if isinstance(outcome, Success) else None,
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
            "eta_s": None if job.is_terminal else job.progress.eta_s,
            "queue_position": job.queue_position,
        },
        "attempt": job.attempt,
        "metadata": job.metadata,
        "created_at": _utc(job.created),
        "updated_at": _utc(job.updated),
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
