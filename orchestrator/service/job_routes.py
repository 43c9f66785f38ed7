"""The job API of the orchestrator: the routes of `job_api`, and attempts for the operator."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from orchestrator.job_api.deliveries import deliveries_body, delivery_body
from orchestrator.job_api.lists import JobQuery, QueryText, page_body, read_cursor
from orchestrator.job_api.routes import PREFIX, job_router
from orchestrator.service.access import ClientCaller
from orchestrator.service.errors import Rejected
from orchestrator.service.event_stream import MAX_READERS, event_stream
from orchestrator.service.job_messages import JobCreate, attempt_body
from orchestrator.service.job_models import JOB_MODELS
from orchestrator.service.services import ClientDep, Services, ServicesDep
from orchestrator.service.texts import Id
from orchestrator.service.webhook_targets import check_webhook
from orchestrator.store.states import STATUSES
from orchestrator.store.values import JobFilter

logger = logging.getLogger(__name__)


class WorkersJobQuery(JobQuery):
    """The query of a list of jobs that several workers run."""

    worker_id: QueryText | None = Field(
        None, max_length=256, description="Jobs that this worker holds; for the operator."
    )


@dataclass(frozen=True, slots=True)
class ClientBoard:
    """What a client, or the operator, may do with jobs."""

    services: Services
    caller: ClientCaller

    async def submit(
        self, job_id: str, create: JobCreate, idempotency_key: str | None
    ) -> dict[str, Any]:
        """See `JobBoard`."""
        if create.webhook_url is not None:
            await check_webhook(self.services, create.webhook_url)
        new = create.new_job(job_id, self.caller.name, idempotency_key)
        job, is_new = await self.services.run(self.services.store.submit, new)
        if is_new:
            self.services.bell.ring()
            logger.info("job submitted", extra={"job_id": job.id, "client": self.caller.name})
        self.services.news.tell(job.id)
        return self.services.body(job)

    async def page(self, query: WorkersJobQuery) -> dict[str, Any]:
        """See `JobBoard`."""
        sees = self.caller.sees
        states = STATUSES[query.status] if query.status else ()
        which = JobFilter(sees, states, query.worker_id if sees is None else None)
        cursor = read_cursor(query.cursor)
        page = await self.services.run(self.services.store.page, which, query.limit, cursor)
        return page_body([self.services.body(job) for job in page.jobs], page.next_cursor)

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return a job of this client; the operator may see all."""
        return self.services.body(
            await self.services.run(self.services.store.get, job_id, self.caller.sees)
        )

    async def follow(self, job_id: str, number: int) -> AsyncGenerator[bytes, None]:
        """See `JobBoard`."""
        await self.services.run(self.services.store.get, job_id, self.caller.sees)
        if len(self.services.news) >= MAX_READERS:
            text = "As many readers follow jobs as may."
            raise Rejected(503, "too_many_readers", text, retry_after_s=5)
        return event_stream(self.services, job_id, self.caller, number)

    async def retry(self, job_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        job = await self.services.run(self.services.store.retry, job_id, self.caller.sees)
        self.services.bell.ring()
        logger.info("job retried", extra={"job_id": job_id, "client": self.caller.name})
        self.services.news.tell(job_id)
        return self.services.body(job)

    async def cancel(self, job_id: str) -> None:
        """End a job. Its worker is told to stop."""
        job = await self.services.run(self.services.store.cancel, job_id, self.caller.sees)
        facts = {"job_id": job_id, "attempt": job.attempt, "client": self.caller.name}
        logger.info("job cancelled", extra=facts)
        self.services.news.tell(job_id)
        self.services.wake_deliveries()

    async def deliveries(self, job_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        services = self.services
        found = await services.run(services.store.deliveries, job_id, self.caller.sees)
        return deliveries_body(found)

    async def deliver_again(self, job_id: str, delivery_id: str) -> dict[str, Any]:
        """See `JobBoard`."""
        act = self.services.store.deliver_again
        delivery = await self.services.run(act, job_id, delivery_id, self.caller.sees)
        self.services.wake_deliveries()
        return delivery_body(delivery)


async def _board(services: ServicesDep, caller: ClientDep) -> ClientBoard:
    return ClientBoard(services, caller)


router = APIRouter()
_attempts = APIRouter(prefix=PREFIX, tags=["jobs"])


@_attempts.get("/{job_id:path}/attempts", summary="List the attempts at a job")
async def job_attempts(
    job_id: Annotated[Id, Path()], services: ServicesDep, caller: ClientDep
) -> dict[str, Any]:
    """Return every attempt with its worker, times, phase and error. For the operator."""
    if caller.sees is not None:
        raise Rejected(403, "key_of_another_kind", "This route needs the operator's key.")
    await services.run(services.store.get, job_id)
    attempts = await services.run(services.store.attempts, job_id)
    return {"attempts": [attempt_body(attempt) for attempt in attempts]}


# First, as a job's route takes any longer path too.
router.include_router(_attempts)
router.include_router(job_router(_board, JobCreate, JOB_MODELS, WorkersJobQuery))
