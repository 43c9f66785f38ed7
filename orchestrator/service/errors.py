"""Errors of the service, all in the shape of docs/protocol.md §1, with `code` and `hint`.

Internal routes, whose callers may be the predecessor's workers, add `detail`, which those log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from orchestrator.outputs.errors import OutputError
from orchestrator.store import errors as store_errors

logger = logging.getLogger(__name__)

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "invalid_request": "Correct the field that the message names; /docs lists all fields.",
        "body_too_large": "Send less data: videos and sounds are sent as URLs.",
        "body_too_slow": "Send the headers and the body of the request together.",
        "key_missing": "Send a key in X-Internal-API-Key or as Authorization: Bearer.",
        "key_wrong": "Compare the key with the one that the operator gave out; it may be revoked.",
        "key_of_another_kind": "Use a client's key here, or the operator's.",
        "form_refused": "Go back, load the page again, and send the form once more.",
        "too_many_guesses": "Wait as long as Retry-After says, then send the correct key.",
        "too_many_requests": "Wait as long as Retry-After says.",
        "not_found": "Compare the path with the routes that /docs lists.",
        "method_not_allowed": "Use one of the methods that the Allow header names.",
        "job_not_found": "Check the id; old jobs are deleted, so the job may be sent again.",
        "worker_not_found": "Check the id; GET /v1/workers lists all workers.",
        "job_conflict": "Send another musetalk_job_id or Idempotency-Key, or the same content.",
        "batch_not_found": "Check the id; old batches are deleted with their oldest jobs.",
        "batch_ended": "Nothing is left to cancel; request the batch to see its jobs.",
        "batch_conflict": "Send another Idempotency-Key, or the same content.",
        "too_many_joined": "Submit another job with an id of its own.",
        "delivery_not_found": "GET /v1/avatar/jobs/ID/deliveries lists the deliveries of a job.",
        "webhooks_off": "Leave webhook_url out, or set WEBHOOK_SECRET where the service runs.",
        "webhook_refused": "Send a URL on the public internet. If you operate this service and "
        "trust that host, add it to ORCHESTRATOR_WEBHOOK_HOSTS.",
        "too_many_webhooks": "Submit another job, or send one of the addresses that it has.",
        "job_ended": "Nothing is left to cancel; request the job to see its result.",
        "job_not_ended": "Cancel the job first, or wait for its end.",
        "job_gone": "Stop the job and report nothing more of it.",
        "queue_full": "Send it again after Retry-After seconds.",
        "too_many_readers": "Send it again after Retry-After seconds.",
        "state_unavailable": "Send it again later; the operator should check the database.",
        "outputs_unavailable": "Send it again later; the operator should check the object store.",
        "internal_error": "Send it again; if it fails again, report it with the service's log.",
    }
)
RETRYABLE = frozenset(
    {"too_many_guesses", "too_many_requests", "queue_full", "too_many_readers", "body_too_slow"}
    | {"state_unavailable", "outputs_unavailable", "internal_error"}
)
RETRY_AFTER_S = 5


class Rejected(Exception):
    """A request that is answered with an error. `code` is one of `HINTS`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.details = details
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


def error_answer(rejected: Rejected) -> JSONResponse:
    """Return an error in the one shape."""
    body = {
        "status": "failed",
        "error_type": "unknown_error" if rejected.status >= 500 else "request_error",
        "error_message": rejected.message,
        "code": rejected.code,
        "hint": HINTS[rejected.code],
        "input": None,
        "stage": "unknown",
        "details": rejected.details or {},
        "retryable": rejected.code in RETRYABLE,
        "stage_times": {},
        "detail": rejected.message,
    }
    return JSONResponse(body, rejected.status, headers=rejected.headers)


def of_store(error: store_errors.StoreError) -> Rejected:
    """Return the answer to an error of the store. This is the only table of them."""
    match error:
        case store_errors.JobNotFound():
            return Rejected(404, "job_not_found", "There is no such job.")
        case store_errors.DeliveryNotFound():
            return Rejected(404, "delivery_not_found", "The job has no such delivery.")
        case store_errors.TooManyWebhooks():
            text = "The job has as many webhooks as one job may have."
            return Rejected(409, "too_many_webhooks", text)
        case store_errors.AttemptGone():
            return Rejected(409, "job_gone", "This attempt no longer holds the job.")
        case store_errors.JobConflict():
            text = "This id or idempotency key belongs to a job with different content."
            return Rejected(409, "job_conflict", text)
        case store_errors.WrongState(state="queued" | "running"):
            return Rejected(409, "job_not_ended", f"The job is {error.state}.")
        case store_errors.WrongState():
            return Rejected(409, "job_ended", f"The job has ended: it is {error.state}.")
        case store_errors.BatchedJobRefused(reason=store_errors.StoreError() as reason):
            return _of_batched(error.index, of_store(reason))
        case store_errors.BatchNotFound():
            return Rejected(404, "batch_not_found", "There is no such batch.")
        case store_errors.BatchConflict():
            text = "This idempotency key belongs to a batch with different content."
            return Rejected(409, "batch_conflict", text)
        case store_errors.BatchEnded():
            text = "All jobs of this batch have already ended."
            return Rejected(409, "batch_ended", text, details={"status": error.status})
        case store_errors.TooManyBatches():
            text = "The job is in as many batches as one job may be in."
            return Rejected(409, "too_many_joined", text)
        case store_errors.QueueFull():
            text = "As many jobs wait as may wait."
            return Rejected(429, "queue_full", text, retry_after_s=RETRY_AFTER_S * 6)
        case _:
            logger.error("the store is unavailable", extra={"error": str(error)})
            text = "The database does not answer at present."
            return Rejected(503, "state_unavailable", text, retry_after_s=RETRY_AFTER_S)


def _of_batched(index: int, alone: Rejected) -> Rejected:
    """Return the answer to a batch, given the answer that one of its jobs would have alone."""
    place = f"jobs.{index}"
    text = f"{place}: {alone.message}"
    return Rejected(alone.status, alone.code, text, details={"field": place})


def add_handlers(app: FastAPI) -> None:
    """Answer every error of every route in the one shape."""
    app.add_exception_handler(Rejected, _on_rejected)
    app.add_exception_handler(store_errors.StoreError, _on_store_error)
    app.add_exception_handler(OutputError, _on_output_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_rejected(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Rejected)
    return error_answer(error)


async def _on_store_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, store_errors.StoreError)
    return error_answer(of_store(error))


async def _on_output_error(_: Request, error: Exception) -> JSONResponse:
    logger.error("the object store is unavailable", extra={"error": str(error)})
    text = "The object store of the outputs cannot be used at present."
    return error_answer(Rejected(503, "outputs_unavailable", text, retry_after_s=RETRY_AFTER_S))


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    """Name the first wrong field, without its value, as addresses may be signed."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part)[:64] for part in first["loc"] if part != "body") or "body"
    reason = str(first["msg"]).removeprefix("Value error, ")
    text = f"The request is not valid: {where}: {reason}."
    return error_answer(Rejected(422, "invalid_request", text, details={"field": where}))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        rejected = Rejected(405, "method_not_allowed", "This route has no such method.")
        rejected.headers.update(error.headers or {})
        return error_answer(rejected)
    if error.status_code == 404:
        return error_answer(Rejected(404, "not_found", "There is no such route."))
    return error_answer(Rejected(error.status_code, "invalid_request", str(error.detail)))


async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    text = "The service failed unexpectedly."
    return error_answer(Rejected(500, "internal_error", text))
