"""What an operator tells a worker while it runs."""

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serve_app.api.answers import job_body
from serve_app.api.models.problems import sent_problems
from serve_app.api.models.workers import Drain
from serve_app.api.security import require_key
from serve_app.api.services import ServicesDep

router = APIRouter(prefix="/admin", tags=["operation"], dependencies=[Depends(require_key)])

LISTED = 200  # running jobs; there are never so many


class DrainRequest(BaseModel):
    """How a worker is drained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hand_back: bool = Field(
        False,
        description="Running jobs are not waited for. They go back into the queue, where the next "
        "start finds them; those of an orchestrator stay claimed until then.",
    )


@router.post(
    "/drain",
    summary="Begin no more jobs, and see what is left",
    response_model=Drain,
    responses=sent_problems(),
)
async def drain(services: ServicesDep, request: DrainRequest | None = None) -> JSONResponse:
    """Drain this worker, which a restart alone takes back. Repeat the request to follow it: with
    the status `drained` no job runs here any more. Queued jobs stay for the next start.
    """
    draining = services.draining
    draining.requested.set()
    if request is not None and request.hand_back:
        draining.hand_back.set()
    jobs = services.jobs
    running = await jobs.page("running", LISTED, None)
    return JSONResponse(
        {
            "status": "drained" if draining.over.is_set() else "draining",
            "running": [
                {"id": job.id, "progress": job_body(job)["progress"]} for job in running.jobs
            ],
            "queued": await jobs.threads.read(jobs.registry.count_queued),
        }
    )
