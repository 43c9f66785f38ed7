"""Webhooks of jobs: whether a target is accepted, the log of deliveries, and sending one again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.job_api.routes import PREFIX
from orchestrator.net.addresses import AddressRefused
from orchestrator.service.errors import Rejected
from orchestrator.service.job_messages import delivery_body
from orchestrator.service.services import ClientDep, Services, ServicesDep
from orchestrator.service.texts import Id

router = APIRouter(prefix=PREFIX, tags=["jobs"])

JobId = Annotated[Id, Path()]


@router.get("/{job_id:path}/deliveries", summary="List the webhooks of a job's ends")
async def job_deliveries(job_id: JobId, services: ServicesDep, caller: ClientDep) -> dict[str, Any]:
    """Return every delivery with its status, the newest tries with their answers, and the next."""
    found = await services.run(services.store.deliveries, job_id, caller.sees)
    return {"deliveries": [delivery_body(delivery) for delivery in found]}


@router.post("/{job_id:path}/deliveries/{delivery_id}/retry", summary="Send a webhook again")
async def deliver_again(
    job_id: JobId, delivery_id: Id, services: ServicesDep, caller: ClientDep
) -> dict[str, Any]:
    """Queue a delivery again, with the same `webhook-id`, whatever became of it."""
    act = services.store.deliver_again
    delivery = await services.run(act, job_id, delivery_id, caller.sees)
    services.wake_deliveries()
    return delivery_body(delivery)


async def check_webhook(services: Services, url: str, field: str = "webhook_url") -> None:
    """Check the target of a job or a batch before it is accepted. `field` is where it was sent.

    Raises:
        Rejected: 422, this service sends no webhooks, or none to that target.
    """
    if services.deliveries is None:
        text = "This service has no WEBHOOK_SECRET to sign webhooks with."
        raise Rejected(422, "webhooks_off", text, details={"field": field})
    try:
        await services.deliveries.check_target(url)
    except AddressRefused as refused:
        text = f"The request is not valid: {field}: {refused.reason}"
        raise Rejected(422, "webhook_refused", text, details={"field": field}) from refused
