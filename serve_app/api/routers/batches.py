"""Batches: 1 to 500 jobs in one request, with one state and one webhook."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse
from starlette.types import Scope

from musetalk_pipeline.errors import PipelineError
from orchestrator.job_api.described import LOCATION, Done
from orchestrator.job_api.routes import Key
from orchestrator.store.batch_values import NewBatch
from serve_app.api.answers import batch_body
from serve_app.api.errors import BadField, RequestRejected, reject_if_stopping
from serve_app.api.models.batches import Batch
from serve_app.api.models.problems import read_problems, sent_problems
from serve_app.api.routers.jobs import check_webhook, read_job
from serve_app.api.security import require_key
from serve_app.api.services import Services, ServicesDep
from serve_app.contract.outcomes import Failure, rejected
from serve_app.contract.requests import BatchCreate
from serve_app.gate.bodies import BATCHES_PATH
from serve_app.jobs.batches import BatchConflict, BatchedJobRefused, Entry, content_key
from serve_app.jobs.job import TooManyJoined
from serve_app.jobs.statements import HERE
from serve_app.uploads.errors import UploadError

router = APIRouter(prefix=BATCHES_PATH, tags=["batches"], dependencies=[Depends(require_key)])

MAX_TARGETS = 16  # different webhooks of the jobs of one batch, each of which is looked up

BatchId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.post(
    "",
    status_code=202,
    summary="Submit many jobs at once",
    response_model=Batch,
    responses={202: {"headers": LOCATION}, **sent_problems(404, 409)},
)
async def create_batch(
    http: Request, create: BatchCreate, services: ServicesDep, idempotency_key: Key = None
) -> JSONResponse:
    """Return at once. All jobs are accepted, or none is, and the error names the one at fault. The
    same `Idempotency-Key`, with the same content, gives the same batch.
    """
    reject_if_stopping(services.availability.is_stopping)
    entries = await _entries(services, http.scope, create)
    named = [job.musetalk_job_id for job in create.jobs]
    new = NewBatch(
        uuid.uuid4().hex,
        HERE,
        content_key(entries, named),
        create.webhook_url,
        create.metadata,
        idempotency_key,
    )
    try:
        batch = await services.batches.submit(new, entries)
    except BatchConflict:
        text = "This Idempotency-Key belongs to a batch with different content. Use another."
        raise RequestRejected(rejected(409, "batch_conflict", text)) from None
    except BatchedJobRefused as refused:
        raise _refusal(refused) from None
    body = batch_body(batch, services.links.for_request(http.scope))
    return JSONResponse(body, 202, headers={"Location": f"{http.scope['path']}/{batch.id}"})


@router.get(
    "/{batch_id}", summary="Get a batch", response_model=Batch, responses=read_problems(404)
)
async def get_batch(http: Request, batch_id: BatchId, services: ServicesDep) -> JSONResponse:
    """Return how far a batch is, and its jobs in short."""
    batch = await services.batches.get(batch_id)
    if batch is None:
        raise _not_found()
    return JSONResponse(batch_body(batch, services.links.for_request(http.scope)))


@router.delete(
    "/{batch_id}", summary="Cancel a batch", response_model=Done, responses=read_problems(404, 409)
)
async def cancel_batch(batch_id: BatchId, services: ServicesDep) -> JSONResponse:
    """Request the end of every job of a batch that waits or runs; 409 if all have ended."""
    cancelled = await services.batches.cancel(batch_id)
    if cancelled is None:
        raise _not_found()
    batch, was_live = cancelled
    if not was_live:
        text = "All jobs of this batch have already ended."
        raise RequestRejected(rejected(409, "batch_ended", text, status=batch.status))
    return JSONResponse({"detail": "Cancellation requested"})


def _not_found() -> RequestRejected:
    return RequestRejected(rejected(404, "batch_not_found", "There is no such batch."))


async def _entries(services: Services, scope: Scope, create: BatchCreate) -> list[Entry]:
    """Read every job, and check what it names.

    Raises:
        BadField, RequestRejected: the batch, or the job that is named, cannot be accepted.
    """
    if create.webhook_url is not None:
        await check_webhook(services, create.webhook_url)
    entries: list[Entry] = []
    targets: set[str] = set()
    for index, job in enumerate(create.jobs):
        with _naming(index):
            if job.webhook_url is not None and job.webhook_url not in targets:
                targets.add(job.webhook_url)
                if len(targets) > MAX_TARGETS:
                    text = f"the jobs of a batch may have {MAX_TARGETS} different webhooks"
                    raise BadField("webhook_url", text, "Send one webhook_url for the batch.")
                await check_webhook(services, job.webhook_url)
            job_id = job.musetalk_job_id or uuid.uuid4().hex
            entries.append(Entry(*await read_job(services, scope, job, job_id)))
    return entries


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Let errors name the job that they are about."""
    place = f"jobs.{index}"
    try:
        yield
    except BadField as bad:
        raise BadField(f"{place}.{bad.field}", bad.reason, bad.hint) from bad
    except PipelineError as bad:
        raise BadField(place, bad.message, bad.hint) from bad
    except RequestRejected as bad:
        raise RequestRejected(_named(bad.failure, place), bad.headers) from bad
    except UploadError as bad:
        failure = rejected(bad.status_code, bad.code, str(bad), retryable=bad.retryable)
        raise RequestRejected(_named(failure, place)) from bad


def _named(failure: Failure, place: str) -> Failure:
    text = f"{place}: {failure.error_message}"
    return replace(failure, error_message=text, details={**failure.details, "field": place})


def _refusal(refused: BatchedJobRefused) -> RequestRejected:
    place = f"jobs.{refused.index}"
    if isinstance(refused.reason, TooManyJoined):
        text = "This job is in the largest number of batches, or has as many webhooks as it may."
        return RequestRejected(_named(rejected(409, "too_many_joined", text), place))
    text = "This id belongs to a job with different content. Use another."
    return RequestRejected(_named(rejected(409, "job_conflict", text), place))
