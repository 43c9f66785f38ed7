"""The asynchronous API: submit jobs, list, read, follow and cancel them."""

import uuid
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse

from musetalk_pipeline.errors import PipelineError
from serve_app.api.answers import failure_answer, job_body
from serve_app.api.errors import BadField, RequestRejected, reject_if_stopping
from serve_app.api.event_stream import EventStreamResponse, event_stream
from serve_app.api.fields import check_size
from serve_app.api.routers.avatars import check_avatar
from serve_app.api.security import require_key
from serve_app.api.services import Services, ServicesDep
from serve_app.contract.outcomes import job_ended, rejected
from serve_app.contract.requests import KEPT_VIDEO, JobCreate, JobRequest
from serve_app.jobs.job import Job, Origin, SubmissionOptions

router = APIRouter(prefix="/v1/avatar/jobs", tags=["jobs"], dependencies=[Depends(require_key)])


async def _found_job(job_id: str, services: ServicesDep) -> Job:
    job = await services.jobs.get(job_id)
    if job is None:
        raise _no_job()
    return job


FoundJob = Annotated[Job, Depends(_found_job)]


_NOT_OF_THE_REQUEST = {"musetalk_job_id", "video_url", "avatar_id", "webhook_url", "metadata"}


@router.post("", summary="Submit a job")
async def create_job(
    http: Request,
    create: JobCreate,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
) -> JSONResponse:
    """Return at once. The same `Idempotency-Key` and content give the same job."""
    reject_if_stopping(services.availability.is_stopping)
    warnings = check_size(create.aspect_ratio, create.resolution)
    if create.webhook_url is not None:
        await _check_webhook(services, create.webhook_url)
    request = JobRequest(
        musetalk_job_id=create.musetalk_job_id or uuid.uuid4().hex,
        video_url=_video_url(create),
        **create.model_dump(exclude=_NOT_OF_THE_REQUEST),
    )
    await check_avatar(services, request)
    submission = SubmissionOptions(create.webhook_url, create.metadata, idempotency_key, warnings)
    job = await services.jobs.submit(request, Origin.ASYNC, submission)
    location = {"Location": f"{http.scope['path']}/{quote(job.id, safe='')}"}
    body = job_body(job, services.links.for_request(http.scope))
    return JSONResponse(body, status_code=202, headers=location)


@router.get("", summary="List jobs, newest first")
async def list_jobs(
    http: Request,
    services: ServicesDep,
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> JSONResponse:
    """Return one page; pass its `next_cursor` as `cursor` to get the next one."""
    links = services.links.for_request(http.scope)
    page = await services.jobs.page(status, limit, _read_cursor(cursor))
    more = None if page.next_cursor is None else f"{page.next_cursor[0]!r}:{page.next_cursor[1]}"
    bodies = [job_body(job, links) for job in page.jobs]
    return JSONResponse({"jobs": bodies, "next_cursor": more})


# `path`: an id may contain slashes, encoded or not. The longer route has to come first.
@router.get(
    "/{job_id:path}/events",
    summary="Follow a job (server-sent events)",
    response_class=EventStreamResponse,
)
async def job_events(
    http: Request,
    job: FoundJob,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> EventStreamResponse:
    """Send `progress` events, one for every change of phase among them, then one `end` event."""
    links = services.links.for_request(http.scope)
    return EventStreamResponse(event_stream(services.jobs, job.id, last_event_id, links))


@router.get("/{job_id:path}", summary="Get a job")
async def get_job(http: Request, job: FoundJob, services: ServicesDep) -> JSONResponse:
    """Return any job of this ingress, however it was submitted."""
    return JSONResponse(job_body(job, services.links.for_request(http.scope)))


@router.delete("/{job_id:path}", summary="Cancel a job")
async def cancel_job(job_id: str, services: ServicesDep) -> JSONResponse:
    """Request the end of a queued or running job; 409 if it has ended. A job that has begun its
    upload finishes.
    """
    found = await services.jobs.cancel(job_id)
    if found is None:
        raise _no_job()
    job, was_live = found
    if not was_live:
        return failure_answer(job_ended(job.status), job.id)
    return JSONResponse({"detail": "Cancellation requested"})


def _video_url(create: JobCreate) -> str:
    """Return where the video of a job comes from."""
    if create.avatar_id is None and create.video_url is None:
        raise BadField("video_url", "Field required")
    if create.avatar_id is not None and create.video_url is not None:
        raise BadField("avatar_id", "send it or video_url, not both")
    return create.video_url or f"{KEPT_VIDEO}{create.avatar_id}"


def _no_job() -> RequestRejected:
    return RequestRejected(rejected(404, "job_not_found", "There is no such job."))


async def _check_webhook(services: Services, url: str) -> None:
    if services.webhooks is None:
        raise BadField(
            "webhook_url",
            "this worker has no WEBHOOK_SECRET to sign with",
            "Leave webhook_url out, or set WEBHOOK_SECRET where the worker runs.",
        )
    try:
        await services.webhooks.check_target(url)
    except PipelineError as exc:
        raise BadField("webhook_url", exc.message, exc.hint) from exc


def _read_cursor(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        raise BadField("cursor", "use the next_cursor of an earlier answer") from None
