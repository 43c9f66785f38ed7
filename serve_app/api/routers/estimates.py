"""What a job will take, before it is submitted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from musetalk_pipeline.measure import JobSize
from serve_app.api.errors import RequestRejected, reject_if_stopping
from serve_app.api.fields import check_size
from serve_app.api.models.estimates import Estimated
from serve_app.api.models.problems import sent_problems
from serve_app.api.routers.avatars import check_avatar
from serve_app.api.routers.jobs import video_url
from serve_app.api.security import require_key
from serve_app.api.services import ServicesDep
from serve_app.api.upload_desk import check_uploads
from serve_app.contract.outcomes import busy
from serve_app.contract.requests import EstimateRequest, JobRequest
from serve_app.estimates.estimator import Estimate

RETRY_AFTER_S = 5  # an estimate takes about as long as its downloads

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key)])


@router.post(
    "/v1/estimate",
    summary="Estimate the seconds and the price of a job",
    response_model=Estimated,
    responses=sent_problems(404),
)
async def estimate(http: Request, request: EstimateRequest, services: ServicesDep) -> JSONResponse:
    """Fetch and check both inputs, and return the size of the output and what it will take. No job
    is stored and nothing is drawn.
    """
    reject_if_stopping(services.availability.is_stopping)
    check_size(request.aspect_ratio, request.resolution)
    job = JobRequest(
        musetalk_job_id="estimate",
        video_url=video_url(request),
        **request.model_dump(exclude={"video_url", "avatar_id"}),
    )
    await check_uploads(services, http.scope, *job.addresses)
    await check_avatar(services, job)
    if services.estimates.locked():
        text = "This worker makes as many estimates at once as it can."
        raise RequestRejected(busy(429, "busy", text), {"Retry-After": str(RETRY_AFTER_S)})
    async with services.estimates:
        size, made = await services.jobs.estimates.estimate(job)
    return JSONResponse(_body(size, made))


def _body(size: JobSize, made: Estimate) -> dict[str, Any]:
    pools = [
        {"pool": pool.name, "running": pool.running, "frames_per_s": round(pool.frames_per_s, 3)}
        for pool in made.runners.pools
    ]
    length = made.length
    work = {
        "prepared_frames": length.prepared,
        "kept_frames": length.kept,
        "drawn_frames": length.drawn,
        "followed_frames": length.followed,
    }
    return {
        "frames": size.frames,
        "duration_s": round(float(size.frames / size.fps), 3),
        "width": size.width,
        "height": size.height,
        "fps": round(float(size.fps), 3),
        "seconds": round(made.seconds, 1),
        "usd": None if made.usd is None else round(made.usd, 6),
        "queue_s": round(made.queue_s, 1),
        "basis": {"speeds": made.source, "jobs": made.jobs, "pools": pools, "work": work},
    }
