"""Health checks: open ones for load balancers, and two with a token for the fleet's own checks."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from orchestrator.job_api.described import problems_of
from serve_app.api.models.problems import Problem
from serve_app.api.models.workers import Health, Ping, Preflight, Readiness
from serve_app.api.security import require_ping_access, require_worker_token
from serve_app.api.services import ServicesDep
from serve_app.config.settings import API_VERSION, SERVICE_NAME
from serve_app.graph.scaling_loop import Scaling

router = APIRouter(tags=["health"])

OPEN = problems_of(Problem, 400, 500)
TOKENS = (400, 401, 403, 429, 500)


@router.head("/hc", include_in_schema=False)
@router.get(
    "/hc",
    summary="Whether a job can run",
    response_model=Readiness,
    responses=OPEN | {503: {"model": Readiness, "description": "No job can run yet."}},
)
async def hc(services: ServicesDep) -> JSONResponse:
    """Return 200 once every stage can take a job, and 503 before that."""
    return _answer({"status": await services.availability.status()})


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    summary="What is running",
    response_model=Health,
    responses=OPEN | {503: {"model": Health, "description": "No job can run yet."}},
)
async def health(services: ServicesDep) -> JSONResponse:
    """Return the same as `/hc`, with the engine, the device and the pools of replicas."""
    availability = services.availability
    return _answer(
        {
            "status": await availability.status(),
            "service": SERVICE_NAME,
            "version": API_VERSION,
            **availability.facts(),
            **({} if services.scaling is None else _pools(services.scaling)),
        }
    )


def _pools(scaling: Scaling) -> dict[str, Any]:
    fault = {"user_config_fault": scaling.live_fault} if scaling.live_fault else {}
    return {
        "frames_waiting": round(scaling.frames_waiting),
        "pools": [asdict(pool) for pool in scaling.reports()],
        **fault,
    }


def _answer(body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, status_code=200 if body["status"] == "ok" else 503)


@router.get(
    "/v1/ping",
    summary="Version and load",
    dependencies=[Depends(require_ping_access)],
    response_model=Ping,
    responses=problems_of(Problem, *TOKENS, 503),
)
async def ping(services: ServicesDep) -> JSONResponse:
    """Return version, build and load, for the fleet's own checks."""
    options, capacity = services.options, services.reported_capacity
    device = str(services.availability.facts().get("device", "cpu"))
    body = {
        "status": "ok",
        "version": API_VERSION,
        "gpu": device.startswith("cuda"),
        # Jobs that only download their files, before they have a place, are not counted.
        "activeJobs": min(services.jobs.active_jobs, capacity),
        "maxConcurrentJobs": capacity,
        "buildCommit": options.build_commit,
        "buildTime": options.build_time,
        "imageDigest": options.image_digest,
    }
    return JSONResponse(body)


@router.get(
    "/v1/preflight",
    summary="Try every dependency",
    dependencies=[Depends(require_worker_token)],
    response_model=Preflight,
    responses=problems_of(Problem, *TOKENS)
    | {503: {"model": Preflight | Problem, "description": "A check failed, or none was made."}},
)
async def preflight(services: ServicesDep) -> JSONResponse:
    """Return `ok`, or the error, for every runtime dependency and model file."""
    checks = await services.availability.preflight()
    # "ok, but …": it works, and there is something that the operator should know.
    is_ok = all(result == "ok" or result.startswith("ok, but ") for result in checks.values())
    body = {"status": "ok" if is_ok else "failed", "checks": checks}
    return JSONResponse(body, status_code=200 if is_ok else 503)
