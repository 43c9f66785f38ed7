"""The job API (docs/protocol.md §3): submit, list, read, follow, cancel and retry jobs."""

from __future__ import annotations

import logging
import uuid
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Response

from orchestrator.service.errors import Rejected
from orchestrator.service.event_stream import MAX_READERS, EventStream, event_stream
from orchestrator.service.job_messages import (
    JobCreate,
    Status,
    attempt_body,
    job_body,
    states_of,
)
from orchestrator.service.services import ClientDep, ServicesDep
from orchestrator.service.texts import Id, Text
from orchestrator.store.values import JobFilter

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/avatar/jobs", tags=["jobs"])

# `path`: an id may contain slashes, encoded or not. The longer routes have to come first.
JobId = Annotated[Id, Path()]


@router.post("", status_code=202, summary="Submit a job")
async def create_job(
    create: JobCreate,
    response: Response,
    services: ServicesDep,
    caller: ClientDep,
    idempotency_key: Annotated[Text | None, Header(min_length=1, max_length=256)] = None,
) -> dict[str, Any]:
    """Queue a job. The same id or `Idempotency-Key`, with the same content, gives the same job."""
    job_id = create.musetalk_job_id or uuid.uuid4().hex
    new = create.new_job(job_id, caller.name, idempotency_key)
    job, is_new = await services.run(services.store.submit, new)
    if is_new:
        services.bell.ring()
        logger.info("job submitted", extra={"job_id": job.id, "client": caller.name})
    services.news.tell(job.id)
    response.headers["Location"] = f"{router.prefix}/{quote(job.id, safe='')}"
    return job_body(job)


@router.get("", summary="List jobs, newest first")
async def list_jobs(
    services: ServicesDep,
    caller: ClientDep,
    status: Status | None = None,
    worker_id: Annotated[Text | None, Query(max_length=256)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[Text | None, Query(max_length=400)] = None,
) -> dict[str, Any]:
    """Return one page; pass its `next_cursor` as `cursor` to get the next one."""
    which = JobFilter(caller.sees, states_of(status), worker_id if caller.sees is None else None)
    page = await services.run(services.store.page, which, limit, read_cursor(cursor))
    more = write_cursor(page.next_cursor)
    return {"jobs": [job_body(job) for job in page.jobs], "next_cursor": more}


@router.get(
    "/{job_id:path}/events", summary="Follow a job (server-sent events)", response_class=EventStream
)
async def job_events(
    job_id: JobId,
    services: ServicesDep,
    caller: ClientDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> EventStream:
    """Send a `progress` event for every change, then one `end` event."""
    await services.run(services.store.get, job_id, caller.sees)
    if len(services.news) >= MAX_READERS:
        text = "As many readers follow jobs as may."
        raise Rejected(503, "too_many_readers", text, retry_after_s=5)
    is_number = last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal()
    number = int(last_event_id[:9]) if is_number and last_event_id else 0
    return EventStream(event_stream(services, job_id, caller, number))


@router.get("/{job_id:path}/attempts", summary="List the attempts at a job")
async def job_attempts(job_id: JobId, services: ServicesDep, caller: ClientDep) -> dict[str, Any]:
    """Return every attempt with its worker, times, phase and error. For the operator."""
    if caller.sees is not None:
        raise Rejected(403, "key_of_another_kind", "This route needs the operator's key.")
    await services.run(services.store.get, job_id)
    attempts = await services.run(services.store.attempts, job_id)
    return {"attempts": [attempt_body(attempt) for attempt in attempts]}


@router.post("/{job_id:path}/retry", summary="Queue an ended job again")
async def retry_job(job_id: JobId, services: ServicesDep, caller: ClientDep) -> dict[str, Any]:
    """Start the next run of a job that is dead, has failed or was cancelled; else 409."""
    job = await services.run(services.store.retry, job_id, caller.sees)
    services.bell.ring()
    logger.info("job retried", extra={"job_id": job_id, "client": caller.name})
    services.news.tell(job_id)
    return job_body(job)


@router.get("/{job_id:path}", summary="Get a job")
async def get_job(job_id: JobId, services: ServicesDep, caller: ClientDep) -> dict[str, Any]:
    """Return a job of this client; the operator may see all."""
    return job_body(await services.run(services.store.get, job_id, caller.sees))


@router.delete("/{job_id:path}", summary="Cancel a job")
async def cancel_job(job_id: JobId, services: ServicesDep, caller: ClientDep) -> dict[str, str]:
    """End a queued or running job; 409 if it has ended. Its worker is told to stop."""
    job = await services.run(services.store.cancel, job_id, caller.sees)
    facts = {"job_id": job_id, "attempt": job.attempt, "client": caller.name}
    logger.info("job cancelled", extra=facts)
    services.news.tell(job_id)
    return {"detail": "Cancellation requested"}


def write_cursor(cursor: tuple[float, str] | None) -> str | None:
    """Return the cursor of a page as text."""
    return None if cursor is None else f"{cursor[0]!r}:{cursor[1]}"


def read_cursor(cursor: str | None) -> tuple[float, str] | None:
    """Return a cursor that `write_cursor` wrote.

    Raises:
        Rejected: 422, it did not.
    """
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        text = "The request is not valid: cursor: use the next_cursor of an earlier answer."
        raise Rejected(422, "invalid_request", text, details={"field": "cursor"}) from None
