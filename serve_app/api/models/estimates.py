"""Estimates, as routers/estimates.py writes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import shows

_ESTIMATE: JsonDict = {
    "frames": 177,
    "duration_s": 7.08,
    "width": 512,
    "height": 512,
    "fps": 25.0,
    "seconds": 8.9,
    "usd": 0.0012,
    "queue_s": 0.0,
    "basis": {
        "speeds": "receipts",
        "jobs": 12,
        "pools": [{"pool": "ada", "running": 2, "frames_per_s": 61.3}],
        "work": {
            "prepared_frames": 177,
            "kept_frames": 0,
            "drawn_frames": 177,
            "followed_frames": 0,
        },
    },
}


class EstimatePool(BaseModel):
    """A pool that the estimate counts on."""

    pool: str
    running: int = Field(description="Replicas that run now.")
    frames_per_s: float = Field(description="Of one replica.")


class EstimateWork(BaseModel):
    """What there is to do, in frames of the video and of the result."""

    prepared_frames: int = Field(description="Of the video, whose faces are found.")
    kept_frames: int = Field(description="Of the video, which an earlier job has prepared.")
    drawn_frames: int = Field(description="Of the result, with a mouth that is drawn.")
    followed_frames: int = Field(description="Of the video, read to follow a chosen person.")


class EstimateBasis(BaseModel):
    """What the estimate is computed from."""

    speeds: str = Field(description="`receipts` of finished jobs, or the `configuration`.")
    jobs: int = Field(description="Finished jobs that the speeds were learnt from.")
    pools: list[EstimatePool]
    work: EstimateWork


class Estimated(BaseModel):
    """What a job will take."""

    model_config = ConfigDict(json_schema_extra=shows(_ESTIMATE))

    frames: int
    duration_s: float = Field(description="Of the result.")
    width: int
    height: int
    fps: float
    seconds: float = Field(description="From the start of the job to its result.")
    usd: float | None = Field(description="Null where the configuration has no prices.")
    queue_s: float = Field(description="Before the job begins.")
    basis: EstimateBasis
