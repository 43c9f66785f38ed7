"""What scaling has decided and why, for the operator."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from orchestrator.job_api.instants import instant
from orchestrator.service.scaling_loop import SCALING
from orchestrator.service.services import ServicesDep, require_admin

router = APIRouter(prefix="/v1/scaling", tags=["scaling"], dependencies=[Depends(require_admin)])


@router.get("", summary="Show the scaling loop and its newest decisions")
async def show_scaling(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """Return when the loop last stepped, what it saw, what failed, and what it decided."""
    status = await services.run(services.store.loop_status, SCALING)
    decisions = await services.run(services.store.decisions, limit)
    return {
        "is_on": bool(services.fleet_plan and services.fleet_plan.fleets),
        "holder": status and status.holder,
        "stepped_at": instant(status.stepped_at) if status else None,
        "error": status and status.error,
        "seen": status and status.facts,
        "decisions": [
            {
                "made_at": instant(one.made_at),
                "provider": one.provider,
                "gpu_class": one.gpu_class,
                "have": one.have,
                "want": one.want,
                "reason": one.reason,
                "error": one.error,
            }
            for one in decisions
        ],
    }
