"""Batches at the orchestrator: the routes of `job_api` over the store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from orchestrator.job_api.batch_routes import batch_router
from orchestrator.job_api.batches import MAX_BATCH_TARGETS
from orchestrator.service.access import ClientCaller
from orchestrator.service.batch_messages import BatchCreate
from orchestrator.service.errors import Rejected
from orchestrator.service.job_models import Problem
from orchestrator.service.services import ClientDep, Services, ServicesDep
from orchestrator.service.webhook_targets import check_webhook

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientBatchBoard:
    """What a client, or the operator, may do with batches."""

    services: Services
    caller: ClientCaller

    async def submit(self, create: BatchCreate, idempotency_key: str | None) -> dict[str, Any]:
        """See `BatchBoard`."""
        services, client = self.services, self.caller.name
        await _check_webhooks(services, create)
        jobs = create.new_jobs(client)
        new = create.new_batch(client, jobs, idempotency_key)
        batch, is_new = await services.run(services.store.submit_batch, new, jobs)
        if is_new:
            services.bell.ring(batch.counts["queued"])
            facts = {"batch_id": batch.id, "jobs": batch.size, "client": client}
            logger.info("batch submitted", extra=facts)
            self._tell(*(job.id for job in batch.jobs))
        return services.batch_body(batch)

    async def get(self, batch_id: str) -> dict[str, Any]:
        """Return a batch of this client; the operator may see all."""
        get = self.services.store.get_batch
        return self.services.batch_body(await self.services.run(get, batch_id, self.caller.sees))

    async def cancel(self, batch_id: str) -> None:
        """End the jobs of a batch. Their workers are told to stop."""
        cancel = self.services.store.cancel_batch
        _, ended = await self.services.run(cancel, batch_id, self.caller.sees)
        facts = {"batch_id": batch_id, "jobs": len(ended), "client": self.caller.name}
        logger.info("batch cancelled", extra=facts)
        self._tell(*ended)
        self.services.wake_deliveries()

    def _tell(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.services.news.tell(job_id)


async def _check_webhooks(services: Services, create: BatchCreate) -> None:
    """Check the targets of a batch and of its jobs, each once.

    Raises:
        Rejected: 422, a webhook cannot be sent to a target, or there are too many targets.
    """
    if create.webhook_url is not None:
        await check_webhook(services, create.webhook_url)
    first: dict[str, int] = {}
    for index, job in enumerate(create.jobs):
        if job.webhook_url is not None:
            first.setdefault(job.webhook_url, index)
    for number, (url, index) in enumerate(first.items()):
        field = f"jobs.{index}.webhook_url"
        if number == MAX_BATCH_TARGETS:
            text = f"{field}: the jobs of a batch may have {MAX_BATCH_TARGETS} different webhooks"
            text = f"The request is not valid: {text}."
            raise Rejected(422, "invalid_request", text, details={"field": field})
        await check_webhook(services, url, field)


async def _board(services: ServicesDep, caller: ClientDep) -> ClientBatchBoard:
    return ClientBatchBoard(services, caller)


router = batch_router(_board, BatchCreate, Problem)
