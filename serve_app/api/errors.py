"""Errors of the API in their one shape, whatever raises them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from musetalk_pipeline.errors import PipelineError
from orchestrator.store.errors import (
    BatchConflict,
    BatchedJobRefused,
    BatchEnded,
    BatchNotFound,
    DeliveryNotFound,
    JobConflict,
    JobNotFound,
    QueueFull,
    StoreUnavailable,
    WrongState,
)
from orchestrator.store.states import JobState, status_of
from serve_app.api.answers import failure_answer
from serve_app.api.fields import shown_name, shown_path, unknown_field
from serve_app.contract.codes import ErrorCode
from serve_app.contract.outcomes import (
    Failure,
    busy,
    failure_of,
    invalid_request,
    job_ended,
    rejected,
    state_unavailable,
)
from serve_app.jobs.job import TooManyJoined, WorkerStopping
from serve_app.uploads.errors import UploadError, WrongOffset

RETRY_AFTER_S = 30
STATE_RETRY_AFTER_S = 5  # space and locks may be free again at any moment
STOPPING_RETRY_S = 30
JSON_HINT = "Send one JSON object, with the header Content-Type: application/json."


class BadField(Exception):
    """A field has a value that this worker cannot use, although another one might."""

    def __init__(self, field: str, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{field}: {reason.rstrip('.')}")
        self.field, self.reason, self.hint = field, reason, hint


class RequestRejected(Exception):
    """A request that is answered with `failure`, whatever route it is for."""

    def __init__(
        self, failure: Failure, headers: dict[str, str] | None = None, *, job_id: str = ""
    ) -> None:
        super().__init__(failure.error_message)
        self.failure, self.headers, self.job_id = failure, headers, job_id


def reject_if_stopping(is_stopping: bool) -> None:
    """Reject a new job if this worker is stopping.

    Raises:
        RequestRejected: it is stopping. The caller may use another worker.
    """
    if is_stopping:
        text = "This worker is stopping and does not accept new jobs."
        raise RequestRejected(busy(503, "stopping", text), {"Retry-After": str(STOPPING_RETRY_S)})


async def on_invalid(request: Request, exc: Exception) -> JSONResponse:
    """Name the first wrong field, without its value."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    # For a field with several types, pydantic appends the name of the type that it tried.
    where = [part for part in first["loc"] if part not in ("body", "constrained-str")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it ends early")
        text = f"The body is not valid JSON: {reason} at character {where[0] if where else 0}."
        return failure_answer(rejected(422, "invalid_request", text, hint=JSON_HINT))
    if not where:
        return failure_answer(_no_object(request))
    field = shown_path(where)
    message = f"The request is not valid: {_complaint(first, where, field)}"
    return failure_answer(invalid_request(message, field=field))


def _no_object(request: Request) -> Failure:
    """Return the answer to a body that was not read as a JSON object, with the reason."""
    kind = request.headers.get("content-type", "")
    is_json = "json" in kind.lower()
    why = "" if is_json else f", because its Content-Type is `{shown_name(kind or 'not given')}`"
    text = f"The body was not read as a JSON object{why}."
    return rejected(422, "invalid_request", text, hint=JSON_HINT)


def _complaint(error: dict[str, Any], where: Sequence[object], field: str) -> str:
    if error["type"] == "extra_forbidden":
        return unknown_field(where)
    return f"{field}: {error['msg'].removeprefix('Value error, ')}."


async def _on_bad_field(request: Request, exc: Exception) -> JSONResponse:
    """Name the field that cannot be used."""
    assert isinstance(exc, BadField)
    message = f"The request is not valid: {exc}."
    return failure_answer(invalid_request(message, hint=exc.hint, field=exc.field))


async def _on_rejected(request: Request, exc: Exception) -> JSONResponse:
    """Answer with what a route or a dependency rejects."""
    assert isinstance(exc, RequestRejected)
    return failure_answer(exc.failure, exc.job_id, headers=exc.headers)


async def _on_conflict(request: Request, exc: Exception) -> JSONResponse:
    """Reject an id that another job has."""
    assert isinstance(exc, JobConflict)
    message = "This id (or idempotency key) belongs to a job with different content. Use another."
    return failure_answer(rejected(409, "job_conflict", message), exc.job_id)


async def _on_not_found(request: Request, exc: Exception) -> JSONResponse:
    """Reject an id that no job has."""
    return failure_answer(rejected(404, "job_not_found", "There is no such job."))


async def _on_wrong_state(request: Request, exc: Exception) -> JSONResponse:
    """Reject what the job's state does not allow."""
    assert isinstance(exc, WrongState)
    status = status_of(JobState(exc.state))
    if JobState(exc.state).is_terminal:
        return failure_answer(job_ended(status))
    message = f"The job is {status}."
    return failure_answer(rejected(409, "job_not_ended", message, status=status))


async def _on_full(request: Request, exc: Exception) -> JSONResponse:
    """Tell the caller to try again later."""
    message = "The queue is full. Send the job again later."
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return failure_answer(busy(429, "queue_full", message), headers=headers)


async def _on_pipeline_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer with what was wrong before there was a job."""
    assert isinstance(exc, PipelineError)
    return failure_answer(failure_of(exc, {}))


async def _on_upload_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer with what is wrong with an upload."""
    assert isinstance(exc, UploadError)
    kind = "processing_error" if exc.retryable else "unknown_error"
    failure = rejected(
        exc.status_code, exc.code, str(exc), error_type=kind, retryable=exc.retryable
    )
    headers = {"Upload-Offset": str(exc.offset)} if isinstance(exc, WrongOffset) else None
    return failure_answer(failure, headers=headers)


async def on_http_error(request: Request, exc: Exception) -> JSONResponse:
    """Give the framework's own errors the one shape."""
    assert isinstance(exc, HTTPException)
    status, path = exc.status_code, shown_name(request.url.path)
    headers = dict(exc.headers) if exc.headers else None
    if status == 400:  # a body that the parser rejects is like any other bad input
        text = "The body is not valid JSON."
        failure = rejected(422, "invalid_request", text, hint=JSON_HINT)
    elif status == 404:
        failure = rejected(404, "not_found", f"There is nothing at {path}.")
    elif status == 405:
        text = f"The method {shown_name(request.method)} is not allowed for {path}."
        failure = rejected(405, "method_not_allowed", text)
    else:
        code: ErrorCode = "body_too_large" if status == 413 else "invalid_request"
        failure = rejected(status, code, str(exc.detail))
    return failure_answer(failure, headers=headers)


async def on_crash(request: Request, exc: Exception) -> JSONResponse:
    """Answer an unexpected exception; the framework logs it once, with its trace."""
    text = f"This request failed because of a fault of the worker ({type(exc).__name__})."
    failure = rejected(500, "internal_error", text, error_type="processing_error", retryable=True)
    return failure_answer(failure)


async def _on_no_delivery(request: Request, exc: Exception) -> JSONResponse:
    """Answer for a delivery that a job does not have."""
    return failure_answer(rejected(404, "delivery_not_found", "The job has no such delivery."))


async def _on_too_many_joined(request: Request, exc: Exception) -> JSONResponse:
    """Limit what one job has to keep."""
    message = "This job has the largest number of webhooks or idempotency keys. Submit another job."
    return failure_answer(rejected(409, "too_many_joined", message))


async def _on_no_batch(request: Request, exc: Exception) -> JSONResponse:
    """Reject an id that no batch has."""
    return failure_answer(rejected(404, "batch_not_found", "There is no such batch."))


async def _on_batch_conflict(request: Request, exc: Exception) -> JSONResponse:
    """Reject an idempotency key that another batch has."""
    text = "This Idempotency-Key belongs to a batch with different content. Use another."
    return failure_answer(rejected(409, "batch_conflict", text))


async def _on_batch_ended(request: Request, exc: Exception) -> JSONResponse:
    """Reject the end of what has ended."""
    assert isinstance(exc, BatchEnded)
    text = "All jobs of this batch have already ended."
    return failure_answer(rejected(409, "batch_ended", text, status=exc.status))


async def _on_batched_job(request: Request, exc: Exception) -> JSONResponse:
    """Name the job that its batch cannot be entered with."""
    assert isinstance(exc, BatchedJobRefused)
    failure = rejected(
        409, "job_conflict", "This id belongs to a job with different content. Use another."
    )
    if not isinstance(exc.reason, JobConflict):
        text = "This job is in the largest number of batches, or has as many webhooks as it may."
        failure = rejected(409, "too_many_joined", text)
    return failure_answer(named(failure, f"jobs.{exc.index}"))


def named(failure: Failure, place: str) -> Failure:
    """Return a failure that names the job of a batch that it is about."""
    text = f"{place}: {failure.error_message}"
    return replace(failure, error_message=text, details={**failure.details, "field": place})


async def _on_stopping(request: Request, exc: Exception) -> JSONResponse:
    """Tell a caller who waits for a queued job to come back after the restart."""
    text = "This worker is stopping, and the job waits for its next start. Send it again later."
    headers = {"Retry-After": str(STOPPING_RETRY_S)}
    return failure_answer(busy(503, "stopping", text), headers=headers)


async def _on_state_unavailable(request: Request, exc: Exception) -> JSONResponse:
    """Tell the caller to try again when the registry can be used again."""
    headers = {"Retry-After": str(STATE_RETRY_AFTER_S)}
    return failure_answer(state_unavailable(), headers=headers)


ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    BadField: _on_bad_field,
    RequestRejected: _on_rejected,
    JobConflict: _on_conflict,
    JobNotFound: _on_not_found,
    DeliveryNotFound: _on_no_delivery,
    WrongState: _on_wrong_state,
    QueueFull: _on_full,
    TooManyJoined: _on_too_many_joined,
    BatchNotFound: _on_no_batch,
    BatchConflict: _on_batch_conflict,
    BatchEnded: _on_batch_ended,
    BatchedJobRefused: _on_batched_job,
    WorkerStopping: _on_stopping,
    StoreUnavailable: _on_state_unavailable,
    PipelineError: _on_pipeline_error,
    UploadError: _on_upload_error,
}
