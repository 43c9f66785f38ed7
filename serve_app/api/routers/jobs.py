"""The asynchronous API of an ingress: the routes of `orchestrator.job_api` over its own jobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Depends, Request
from starlette.types import Scope

from orchestrator.job_api.deliveries import deliveries_body, delivery_body
from orchestrator.job_api.lists import JobQuery, page_body, read_cursor
from orchestrator.job_api.routes import job_router
from orchestrator.net.addresses import AddressRefused
from serve_app.api.answers import job_body
from serve_app.api.errors import BadField, RequestRejected, reject_if_stopping
from serve_app.api.event_stream import event_stream
from serve_app.api.fields import check_size
from serve_app.api.models.jobs import JOB_MODELS
from serve_app.api.routers.avatars import check_avatar
from serve_app.api.security import require_key
from serve_app.api.services import Services, ServicesDep
from serve_app.api.upload_desk import check_uploads
from serve_app.contract.outcomes import job_ended, rejected
from serve_app.contract.requests import KEPT_VIDEO, EstimateRequest, JobCreate, JobRequest
from serve_app.gate.links import Links
from serve_app.jobs.job import Origin, SubmissionOptions

WEBHOOK_HINT = (
    "Send a URL on the public internet. If you operate this worker and trust that host, add it to "
    "ALLOWED_SOURCE_HOSTS or inputs.allowed_hosts."
)
_NOT_OF_THE_REQUEST = {"musetalk_job_id", "video_url", "avatar_id", "webhook_url", "metadata"}


@dataclass(frozen=True, slots=True)
class IngressBoard:
    """What a caller of this ingress may do with its jobs. `links` are those that it can open;
    `scope` is its request.
    """

    services: Services
    links: Links
    scope: Scope

    async def submit(
        self, job_id: str, create: JobCreate, idempotency_key: str | None
    ) -> dict[str, Any]:
        """See `JobBoard`."""
        services = self.services
        reject_if_stopping(services.availability.is_stopping)
        if create.webhook_url is not None:
            await check_webhook(services, create.webhook_url)
        request, submission = await read_job(services, self.scope, create, job_id)
        submission = replace(submission, idempotency_key=idempotency_key)
        job = await services.jobs.submit(request, Origin.ASYNC, submission)
        return job_body(job, self.links)

    async def page(self, query: JobQuery) -> dict[str, Any]:
        """See `JobBoard`."""
        cursor = read_cursor(query.cursor)
        page = await self.services.jobs.page(query.status, query.limit, cursor)
        return page_body([job_body(job, self.links) for job in page.jobs], page.next_cursor)

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return any job of this ingress, however it was submitted."""
        return job_body(_found(await self.services.jobs.get(job_id)), self.links)

    async def follow(self, job_id: str, number: int) -> AsyncGenerator[bytes, None]:
        """See `JobBoard`."""
        _found(await self.services.jobs.get(job_id))
        return event_stream(self.services.jobs, job_id, number, self.links)

    async def retry(self, job_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        reject_if_stopping(self.services.availability.is_stopping)
        return job_body(await self.services.jobs.retry(job_id), self.links)

    async def cancel(self, job_id: str) -> None:
        """Request the end of a job. One that has begun its upload finishes."""
        job, was_live = _found(await self.services.jobs.cancel(job_id))
        if not was_live:
            raise RequestRejected(job_ended(job.status), job_id=job.id)

    async def deliveries(self, job_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        _found(await self.services.jobs.get(job_id))
        return deliveries_body(await self.services.jobs.deliveries(job_id))

    async def deliver_again(self, job_id: str, delivery_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        _found(await self.services.jobs.get(job_id))
        return delivery_body(await self.services.jobs.deliver_again(job_id, delivery_id))


async def _board(http: Request, services: ServicesDep) -> IngressBoard:
    return IngressBoard(services, services.links.for_request(http.scope), http.scope)


T = TypeVar("T")

router = job_router(_board, JobCreate, JOB_MODELS, dependencies=[Depends(require_key)])


def _found(found: T | None) -> T:
    if found is None:
        raise RequestRejected(rejected(404, "job_not_found", "There is no such job."))
    return found


async def read_job(
    services: Services, scope: Scope, create: JobCreate, job_id: str
) -> tuple[JobRequest, SubmissionOptions]:
    """Return a job as the registry takes it. `scope`: of the request, whose key may use its own
    uploads. The job's webhook is not checked.

    Raises:
        BadField, InvalidOptions, RequestRejected, UploadError: it has a value that cannot be used.
    """
    warnings = check_size(create.aspect_ratio, create.resolution)
    request = JobRequest(
        musetalk_job_id=job_id,
        video_url=video_url(create),
        **create.model_dump(exclude=_NOT_OF_THE_REQUEST),
    )
    await check_avatar(services, request)
    await check_uploads(services, scope, *request.addresses)
    return request, SubmissionOptions(create.webhook_url, create.metadata, warnings=warnings)


def video_url(create: JobCreate | EstimateRequest) -> str:
    """Return where the video of a job comes from.

    Raises:
        BadField: neither an address nor an avatar is named, or both are.
    """
    if create.avatar_id is None and create.video_url is None:
        raise BadField("video_url", "Field required")
    if create.avatar_id is not None and create.video_url is not None:
        raise BadField("avatar_id", "send it or video_url, not both")
    return create.video_url or f"{KEPT_VIDEO}{create.avatar_id}"


async def check_webhook(services: Services, url: str) -> None:
    """Check that webhooks can be sent to an address.

    Raises:
        BadField: this worker sends none, or none to that address.
    """
    if services.webhooks is None:
        raise BadField(
            "webhook_url",
            "this worker has no WEBHOOK_SECRET to sign with",
            "Leave webhook_url out, or set WEBHOOK_SECRET where the worker runs.",
        )
    try:
        await services.webhooks.check_target(url)
    except AddressRefused as exc:
        raise BadField("webhook_url", exc.reason, exc.hint or WEBHOOK_HINT) from exc
