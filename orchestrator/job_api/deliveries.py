"""Deliveries of webhooks in the job API: their log, and its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, shows
from orchestrator.job_api.instants import instant
from orchestrator.net.addresses import parse_location
from orchestrator.store.delivery_values import Delivery as StoredDelivery

_DELIVERY: JsonDict = {
    "id": "evt_4f1c0d6e2b7a4f0a9a3a5b1de6c0f7aa",
    "event": "avatar.job.succeeded",
    "target": "https://hooks.example",
    "status": "pending",
    "tries": 1,
    "created_at": "2026-11-26T03:49:38.307+00:00",
    "next_try_at": "2026-11-26T03:49:43.410+00:00",
    "ended_at": None,
    "log": [{"at": "2026-11-26T03:49:38.402+00:00", "code": 503, "error": "answered 503"}],
}


class DeliveryTry(BaseModel):
    """One try at a delivery."""

    at: Instant
    code: int | None = Field(description="The status of the answer, if there was one.")
    error: str | None = Field(description="Why the target did not accept it.")


class Delivery(BaseModel):
    """The webhook of one end of a job to one target."""

    model_config = ConfigDict(json_schema_extra=shows(_DELIVERY))

    id: str = Field(description="The `webhook-id`, the same for each try.")
    event: str
    target: str = Field(description="The host. The rest of the address may be secret.")
    status: Literal["pending", "delivered", "failed"]
    tries: int = Field(description="Since it was queued, or queued again.")
    created_at: Instant
    next_try_at: Instant | None
    ended_at: Instant | None
    log: list[DeliveryTry] = Field(description="The newest tries.")


class Deliveries(BaseModel):
    """The webhooks of the ends of a job, the first one first."""

    model_config = ConfigDict(json_schema_extra=shows({"deliveries": [_DELIVERY]}))

    deliveries: list[Delivery]


def deliveries_body(deliveries: Sequence[StoredDelivery]) -> dict[str, Any]:
    """Return the log of a job's webhooks."""
    return {"deliveries": [delivery_body(delivery) for delivery in deliveries]}


def delivery_body(delivery: StoredDelivery) -> dict[str, Any]:
    """Return the log of one webhook. Its address may contain tokens, so only the host is shown."""
    target = parse_location(delivery.url)  # it was checked when it was stored
    return {
        "id": delivery.id,
        "event": delivery.event,
        "target": "://".join((target.scheme, target.authority)),
        "status": delivery.status,
        "tries": delivery.tries,
        "created_at": instant(delivery.created_at),
        "next_try_at": instant(delivery.due_at),
        "ended_at": instant(delivery.ended_at),
        "log": [
            {"at": instant(told.at), "code": told.code, "error": told.error}
            for told in delivery.log
        ],
    }
