"""Batches, as routers/batches.py writes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, shows
from serve_app.contract.outcomes import JobStatus

_BATCH: JsonDict = {
    "id": "5d6b104dc0294357b1798b662d0a76b2",
    "status": "running",
    "counts": {"queued": 1, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 0},
    "progress": 0.25,
    "jobs": [
        {"id": "ad-de", "status": "running", "output_url": None, "error": None},
        {"id": "ad-fr", "status": "queued", "output_url": None, "error": None},
    ],
    "metadata": {"campaign": "spring"},
    "created_at": "2026-11-26T03:49:38.307+00:00",
    "ended_at": None,
}


class BatchCounts(BaseModel):
    """How many jobs have which status."""

    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class BatchedJob(BaseModel):
    """A job of a batch, in short."""

    id: str
    status: JobStatus
    output_url: str | None = Field(description="Of the video, once it has succeeded.")
    error: str | None = Field(description="One sentence on why it failed.")


class Batch(BaseModel):
    """Jobs that were submitted together."""

    model_config = ConfigDict(json_schema_extra=shows(_BATCH))

    id: str
    status: JobStatus = Field(
        description="In the end `succeeded` if all have, else `failed` if any has, else "
        "`cancelled`."
    )
    counts: BatchCounts
    progress: float = Field(ge=0, le=1, description="The mean of the jobs'; an ended one is 1.")
    jobs: list[BatchedJob] = Field(description="In the order in which they were sent.")
    metadata: dict[str, Any] | None
    created_at: Instant
    ended_at: Instant | None = Field(description="When the last job ended.")
