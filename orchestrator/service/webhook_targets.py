"""Whether webhooks may be sent to an address."""

from __future__ import annotations

from orchestrator.net.addresses import AddressRefused
from orchestrator.service.errors import Rejected
from orchestrator.service.services import Services


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
