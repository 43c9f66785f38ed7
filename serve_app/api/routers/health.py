"""Health checks: open ones for load balancers, and two with a token for the fleet's own checks."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from serve_app.api.security import require_ping_access, require_worker_token
from serve_app.api.services import ServicesDep
from serve_app.config.settings import API_VERSION, SERVICE_NAME

router = APIRouter(tags=["health"])


@router.head("/hc", include_in_schema=False)
@router.get("/hc", summary="Whether a job can run")
async def hc(services: ServicesDep) -> JSONResponse:
    """Return 200 once every stage can take a job, and 503 before that."""
    return _answer({"status": await services.availability.status()})


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="What is running")
async def health(services: ServicesDep) -> JSONResponse:
    """Return the same as `/hc`, with the engine and the device that are used."""
    availability = services.availability
    return _answer(
        {
            "status": await availability.status(),
            "service": SERVICE_NAME,
            "version": API_VERSION,
            **availability.facts(),
        }
    )


def _answer(body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, status_code=200 if body["status"] == "ok" else 503)


@router.get("/v1/ping", summary="Version and load", dependencies=[Depends(require_ping_access)])
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
    "/v1/preflight", summary="Try every dependency", dependencies=[Depends(require_worker_token)]
)
async def preflight(services: ServicesDep) -> JSONResponse:
    """Return `ok`, or the error, for every runtime dependency and model file."""
    checks = await services.availability.preflight()
    # "ok, but …": it works, and there is something that the operator should know.
    is_ok = all(result == "ok" or result.startswith("ok, but ") for result in checks.values())
    body = {"status": "ok" if is_ok else "failed", "checks": checks}
    return JSONResponse(body, status_code=200 if is_ok else 503)
