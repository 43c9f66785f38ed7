"""Batches in the job API: what a submission has besides its jobs, the answers, and their models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, JobStatus, shows
from orchestrator.job_api.instants import instant
from orchestrator.store.batch_values import Batch as StoredBatch
from orchestrator.store.batch_values import BatchedJob as StoredJob

MAX_BATCH_JOBS = 500
MAX_BATCH_TARGETS = 16  # different webhooks of the jobs of one batch, each of which is looked up

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


def batch_body(batch: StoredBatch, output_url: Callable[[StoredJob], str | None]) -> dict[str, Any]:
    """Return a batch, and its jobs in short. `output_url` returns where a job's output can be read
    from now on; None without an output.
    """
    return {
        "id": batch.id,
        "status": batch.status,
        "counts": batch.counts,
        "progress": round(batch.progress, 4),
        "jobs": [
            {
                "id": job.id,
                "status": job.status,
                "output_url": output_url(job),
                "error": job.error,
            }
            for job in batch.jobs
        ],
        "metadata": batch.metadata,
        "created_at": instant(batch.created_at),
        "ended_at": instant(batch.ended_at),
    }


class _Named(Protocol):
    @property
    def musetalk_job_id(self) -> str | None: ...


def _few(value: Any) -> Any:
    """Count before the jobs are validated: each one costs errors of its own."""
    if isinstance(value, list) and len(value) > MAX_BATCH_JOBS:
        raise ValueError(f"a batch has at most {MAX_BATCH_JOBS} jobs")
    return value


def _with_different_ids(jobs: list[_Named]) -> list[_Named]:
    seen: dict[str, int] = {}
    for index, job in enumerate(jobs):
        if job.musetalk_job_id is None:
            continue
        first = seen.setdefault(job.musetalk_job_id, index)
        if first != index:
            raise ValueError(f"jobs.{first} and jobs.{index} have the same musetalk_job_id")
    return jobs


Create = TypeVar("Create")
JobsOfBatch = Annotated[
    list[Create],
    BeforeValidator(_few),
    Field(min_length=1, max_length=MAX_BATCH_JOBS),
    AfterValidator(_with_different_ids),
]
"""The jobs of a submission. `Create`: what the service takes as a job."""
