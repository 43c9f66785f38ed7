"""What clients send to submit a batch. Requests are read strictly."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.job_api.batches import JobsOfBatch
from orchestrator.service.job_messages import Address, JobCreate, Metadata
from orchestrator.store.batch_values import BATCH_PRIORITY, NewBatch, content_key_of
from orchestrator.store.values import NewJob


class BatchCreate(BaseModel):
    """`POST /v1/avatar/batches`. A field that is not here is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: JobsOfBatch[JobCreate]
    webhook_url: Address | None = Field(
        None, description="It is sent a signed POST when all jobs have ended.", repr=False
    )
    metadata: Metadata | None = Field(
        None, description="Given back with the batch; at most 64 entries and 16 KiB."
    )

    def new_jobs(self, client: str) -> list[NewJob]:
        """Return its jobs for the store, in order."""
        return [_new_job(job, client) for job in self.jobs]

    def new_batch(
        self, client: str, jobs: Sequence[NewJob], idempotency_key: str | None
    ) -> NewBatch:
        """Return it for the store. `jobs`: those of `new_jobs`."""
        return NewBatch(
            id=uuid.uuid4().hex,
            client=client,
            content_key=content_key_of(jobs, [job.musetalk_job_id for job in self.jobs]),
            webhook_url=self.webhook_url,
            metadata=self.metadata,
            idempotency_key=idempotency_key,
        )


def _new_job(job: JobCreate, client: str) -> NewJob:
    new = job.new_job(job.musetalk_job_id or uuid.uuid4().hex, client, None)
    return new if "priority" in job.model_fields_set else replace(new, priority=BATCH_PRIORITY)
