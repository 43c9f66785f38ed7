"""What the operator does with workers, and the health of the service."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from orchestrator.service.errors import Rejected
from orchestrator.service.job_messages import worker_body
from orchestrator.service.services import Services, ServicesDep, require_admin
from orchestrator.service.settings import API_VERSION
from orchestrator.service.texts import Id

logger = logging.getLogger(__name__)

health_router = APIRouter(tags=["health"])
router = APIRouter(prefix="/v1/workers", tags=["workers"], dependencies=[Depends(require_admin)])

WorkerId = Annotated[Id, Path()]


@health_router.get("/health")
async def health(services: ServicesDep) -> dict[str, str]:
    """Answer 200 if the database answers, else 503. It needs no key."""
    await services.run(services.store.check)
    return {"status": "ok", "service": "orchestrator", "version": API_VERSION}


@health_router.get("/metrics", response_class=Response)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Return what Prometheus reads. It needs the operator's key, unless the settings open it."""
    if not services.settings.open_metrics:
        await services.access.admin(request)
    seen = await services.run(services.store.overview)
    return Response(services.metrics.text(seen), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("", summary="List workers, those that were heard of last first")
async def list_workers(services: ServicesDep) -> dict[str, Any]:
    """Return what each worker says, whether it is online, and how many jobs it holds."""
    found = await services.run(services.store.workers)
    return {"workers": [worker_body(worker) for worker in found]}


@router.post("/{worker_id:path}/drain", summary="Let a worker claim nothing more")
async def drain(worker_id: WorkerId, services: ServicesDep) -> dict[str, str]:
    """Ask a worker to finish what it holds and to claim nothing more."""
    await _drain(services, worker_id, is_drained=True)
    return {"detail": "Drain requested"}


@router.delete("/{worker_id:path}/drain", summary="Let a worker claim again")
async def undrain(worker_id: WorkerId, services: ServicesDep) -> dict[str, str]:
    """Take a drain back."""
    await _drain(services, worker_id, is_drained=False)
    return {"detail": "Drain taken back"}


async def _drain(services: Services, worker_id: str, *, is_drained: bool) -> None:
    if not await services.run(services.store.drain, worker_id, is_drained=is_drained):
        raise Rejected(404, "worker_not_found", "There is no such worker.")
    done = "drained" if is_drained else "undrained"
    logger.info("worker %s", done, extra={"worker_id": worker_id})
