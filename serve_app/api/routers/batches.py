"""Batches at an ingress: the routes of `orchestrator.job_api` over its own registry."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from starlette.types import Scope

from musetalk_pipeline.errors import PipelineError
from orchestrator.job_api.batch_routes import batch_router
from orchestrator.job_api.batches import MAX_BATCH_TARGETS
from orchestrator.store.batch_values import NewBatch
from serve_app.api.answers import batch_body
from serve_app.api.errors import BadField, RequestRejected, named, reject_if_stopping
from serve_app.api.models.problems import Problem
from serve_app.api.routers.jobs import check_webhook, read_job
from serve_app.api.security import require_key
from serve_app.api.services import Services, ServicesDep
from serve_app.contract.outcomes import rejected
from serve_app.contract.requests import BatchCreate
from serve_app.gate.links import Links
from serve_app.jobs.batches import Entry, content_key
from serve_app.jobs.statements import HERE
from serve_app.uploads.errors import UploadError


@dataclass(frozen=True, slots=True)
class IngressBatchBoard:
    """What a caller of this ingress may do with its batches. `links` are those that it can open;
    `scope` is its request.
    """

    services: Services
    links: Links
    scope: Scope

    async def submit(self, create: BatchCreate, idempotency_key: str | None) -> dict[str, Any]:
        """See `BatchBoard`."""
        services = self.services
        reject_if_stopping(services.availability.is_stopping)
        entries = await _entries(services, self.scope, create)
        new = NewBatch(
            uuid.uuid4().hex,
            HERE,
            content_key(entries, [job.musetalk_job_id for job in create.jobs]),
            create.webhook_url,
            create.metadata,
            idempotency_key,
        )
        return batch_body(await services.batches.submit(new, entries), self.links)

    async def get(self, batch_id: str) -> dict[str, Any]:
        """See `BatchBoard`."""
        return batch_body(await self.services.batches.get(batch_id), self.links)

    async def cancel(self, batch_id: str) -> None:
        """End the jobs of a batch. Those that have begun their upload finish."""
        await self.services.batches.cancel(batch_id)


async def _board(http: Request, services: ServicesDep) -> IngressBatchBoard:
    return IngressBatchBoard(services, services.links.for_request(http.scope), http.scope)


router = batch_router(_board, BatchCreate, Problem, dependencies=[Depends(require_key)])


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
                if len(targets) > MAX_BATCH_TARGETS:
                    text = f"the jobs of a batch may have {MAX_BATCH_TARGETS} different webhooks"
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
        raise RequestRejected(named(bad.failure, place), bad.headers) from bad
    except UploadError as bad:
        failure = rejected(bad.status_code, bad.code, str(bad), retryable=bad.retryable)
        raise RequestRejected(named(failure, place)) from bad
