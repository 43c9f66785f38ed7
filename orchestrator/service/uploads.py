"""Outputs of workers without storage keys: addresses in claims, and what becomes of the uploads.

    claim ─► addresses of this attempt alone ─► the worker uploads ─► final report
      ─► the store holds the job for this service ─► published ─► the store accepts the report

A report that arrives again, because its answer was lost or this service ended in the middle, goes
the same way. What attempts have uploaded is removed when their report is accepted, and again when
their addresses have expired, as a late worker can upload until then.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from orchestrator.outputs import OutputBucket
from orchestrator.outputs.errors import OutputError
from orchestrator.store.batch_values import BatchedJob
from orchestrator.store.states import JobState
from orchestrator.store.store import JobStore
from orchestrator.store.threads import Run
from orchestrator.store.values import AttemptName, Completion, Job, Lease

logger = logging.getLogger(__name__)


class Uploads:
    """The outputs of one service.

    Args:
        run: calls the store in a thread.
        valid_s: how long the addresses of an attempt are valid, in seconds.
    """

    def __init__(self, bucket: OutputBucket, store: JobStore, run: Run, valid_s: int) -> None:
        self._bucket, self._store, self._run = bucket, store, run
        self._valid_s = valid_s

    def addresses(self, lease: Lease) -> dict[str, Any]:
        """Return the field `output` of a claimed job (docs/protocol.md §9)."""
        output = self._bucket.sign_attempt(lease.job.id, lease.attempt, valid_s=self._valid_s)
        return {
            "video_put_url": output.video_put_url,
            "sidecar_put_url": output.sidecar_put_url,
            "headers": dict(output.headers),
            "expires_at": output.expires_at.isoformat(timespec="seconds"),
        }

    def shown(self, job: Job) -> Job:
        """Return a job with an address at which its output can be read from now on."""
        return replace(job, output_url=self.output_url(job))

    def output_url(self, job: Job | BatchedJob) -> str | None:
        """Return an address at which a job's output can be read from now on; None without one."""
        return job.output_url if job.published_attempt is None else self._bucket.read_url(job.id)

    async def accept(
        self, name: AttemptName, result: Completion, size_bytes: int
    ) -> tuple[bool, str]:
        """Publish what an attempt has uploaded, and accept its report.

        Return whether the report is new, and the address for readers.

        Raises:
            AttemptGone, JobNotFound: the result is not this worker's to report.
            OutputMissing: the attempt has not uploaded what it reports.
            OutputError: the object store cannot be used now; the worker repeats its report.
        """
        job = await self._run(self._store.begin_publishing, name)
        if job.state is JobState.SUCCEEDED:
            return False, self.shown(job).output_url or ""
        address = await self._bucket.publish(job.id, job.attempt, size_bytes)
        stored = replace(
            result,
            output_url=self._bucket.plain_url(job.id),
            published_attempt=job.attempt,
        )
        is_new = await self._run(self._store.finish, name, stored)
        await self._discard(job.id, job.attempt)
        return is_new, address

    async def sweep(self) -> None:
        """Remove what attempts have uploaded whose addresses have expired."""
        for job_id, attempt in await self._run(self._store.old_uploads):
            if not await self._discard(job_id, attempt):
                return  # the object store cannot be used now, so the others would fail too
            await self._run(self._store.forget_uploads, job_id, attempt)

    async def close(self) -> None:
        """Close the connections to the object store."""
        await self._bucket.close()

    async def _discard(self, job_id: str, attempt: int) -> bool:
        try:
            await self._bucket.discard(job_id, attempt)
        except OutputError as error:
            facts = {"job_id": job_id, "attempt": attempt, "error": str(error)}
            logger.warning("uploads not removed yet", extra=facts)
            return False
        return True
