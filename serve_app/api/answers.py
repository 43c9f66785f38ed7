"""Outcomes as HTTP answers (docs/protocol.md §1, §3).

Every error of every route has the shape of `error_body`, whatever rejects the request.
"""

from typing import Any

from fastapi.responses import JSONResponse

from orchestrator.job_api.batches import batch_body as shared_batch_body
from orchestrator.job_api.instants import instant
from orchestrator.net.shown import with_urls
from orchestrator.store.batch_values import Batch, BatchedJob, batch_of
from orchestrator.store.deliveries import SHOWN
from orchestrator.store.delivery_values import TakenDelivery
from serve_app.contract.codes import hint_of
from serve_app.contract.errors import error_body
from serve_app.contract.outcomes import Failure, Outcome, Success
from serve_app.gate.links import Links
from serve_app.jobs.job import Job
from serve_app.jobs.rows import job_of
from serve_app.telemetry.redact import shown_url

OLDER_NAMES = ("b2_bucket", "b2_file_name")


def generate_body(
    job_id: str, outcome: Outcome, warnings: tuple[str, ...] = (), links: Links | None = None
) -> dict[str, Any]:
    """Return the body of `POST /generate`'s answer; `warnings` are those of the request.

    Without `links` the body has the output's location as its store recorded it.
    """
    if isinstance(outcome, Failure):
        return error_body(job_id, outcome)
    # Some clients still read an older form of the answer, which has these at the top.
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


def job_body(job: Job, links: Links | None = None) -> dict[str, Any]:
    """Return docs/protocol.md §3's shape, and the progress."""
    outcome = job.outcome
    failure = None
    if isinstance(outcome, Failure):
        names = ("error_type", "code", "input", "stage", "details", "retryable", "receipt")
        failure = {name: getattr(outcome, name) for name in names}
        failure["hint"] = outcome.hint or hint_of(outcome.code)
    request = job.request
    return {
        "id": job.id,
        "status": job.status,
        "output_url": _output_url(outcome, links),
        "stream_url": _stream_url(job, links),
        "metrics": outcome.metrics if isinstance(outcome, Success) else None,
        "error": outcome.error_message if isinstance(outcome, Failure) else None,
        "failure": failure,
        "warnings": [*job.warnings, *(outcome.warnings if isinstance(outcome, Success) else ())],
        "input": {
            # Signed query strings never leave this worker.
            "video_url": shown_url(request.video_url),
            "audio_url": shown_url(request.audio_url),
            "aspect_ratio": request.aspect_ratio,
            "resolution": request.resolution,
            "params": with_urls(request.params.as_json(), shown_url),
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
        "created_at": instant(job.created),
        "updated_at": instant(job.updated),
    }


def batch_body(batch: Batch, links: Links | None = None) -> dict[str, Any]:
    """Return a batch, and its jobs in short."""

    def output_url(job: BatchedJob) -> str | None:
        return links.link(job.output_url) if links and job.output_url else job.output_url

    return shared_batch_body(batch, output_url)


def event_data(taken: TakenDelivery, links: Links) -> dict[str, Any]:
    """Return what a webhook is about: a job or a batch, as it was when it ended."""
    if isinstance(shown := taken.snapshot.get(SHOWN), dict):
        return shown
    if taken.is_of_batch:
        return batch_body(batch_of(taken.snapshot), links)
    return job_body(job_of(taken.snapshot), links)


def generate_answer(job: Job, links: Links, *, stack_traces: bool = False) -> JSONResponse:
    """Return the whole answer of `POST /generate` for a job that has ended."""
    assert job.outcome is not None
    if isinstance(job.outcome, Failure):
        return failure_answer(job.outcome, job.id, stack_traces=stack_traces)
    return JSONResponse(generate_body(job.id, job.outcome, job.warnings, links))


def failure_answer(
    failure: Failure,
    job_id: str = "",
    *,
    headers: dict[str, str] | None = None,
    stack_traces: bool = False,
) -> JSONResponse:
    """Return an error in the one shape that every route has."""
    body = error_body(job_id, failure, stack_trace=stack_traces)
    return JSONResponse(body, failure.status_code, headers=headers)


def _output_url(outcome: Outcome | None, links: Links | None) -> str | None:
    if not isinstance(outcome, Success):
        return None
    return links.link(outcome.output_url) if links else outcome.output_url


def _stream_url(job: Job, links: Links | None) -> str | None:
    # The next attempt at a job that is queued again will have a stream of its own.
    if links is None or job.status == "queued":
        return None
    return links.stream(job.id, job.number)
