"""Batches at one ingress: many jobs that are submitted together, read together, cancelled together.

A batch is entered in one transaction, with all of its jobs or not at all. Its jobs are jobs like
all others, but those that are submitted alone are started before them for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.store import batches
from orchestrator.store.batch_values import BATCH_PRIORITY, Batch, NewBatch, content_key_of
from orchestrator.store.database import Database, Transaction
from orchestrator.store.errors import (
    BatchedJobRefused,
    BatchEnded,
    JobConflict,
    QueueFull,
    TooManyBatches,
)
from serve_app.contract.requests import JobRequest
from serve_app.jobs import leases, submissions
from serve_app.jobs.job import Job, Origin, SubmissionOptions, TooManyJoined
from serve_app.jobs.service import JobService
from serve_app.jobs.statements import HERE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A job of a batch. `gone`: the job of an earlier success whose output no longer exists."""

    request: JobRequest
    submission: SubmissionOptions
    gone: Job | None = None


def content_key(entries: Sequence[Entry], named: Sequence[str | None]) -> str:
    """Return a digest of what a batch asks for. `named`: the ids that its caller has chosen."""
    jobs = [submissions.new_job(each.request, each.submission.metadata, HERE) for each in entries]
    return content_key_of(jobs, named)


class BatchStore:
    """The batches in the file of the registry. Every method is one short transaction, and raises
    StoreUnavailable while the file cannot be used.
    """

    def __init__(self, file: Database) -> None:
        self._file = file

    def submit(
        self, new: NewBatch, entries: Sequence[Entry], max_waiting: int
    ) -> tuple[Batch, bool]:
        """Enter a batch with its jobs, or return the one that has its idempotency key; True if it
        was entered.

        Raises:
            BatchConflict: the key belongs to a batch with different content.
            BatchedJobRefused: one of the jobs cannot be entered.
            QueueFull: more than `max_waiting` jobs of batches would wait.
        """

        def enter_jobs() -> list[str]:
            if batches.count_waiting(tx) + len(entries) > max_waiting:
                raise QueueFull(f"more than {max_waiting} jobs of batches would wait")
            return [_enter(tx, index, entry) for index, entry in enumerate(entries)]

        with self._file.write() as tx:
            return batches.submit(tx, new, len(entries), enter_jobs)

    def get(self, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            BatchNotFound: there is none, or it has been forgotten.
        """
        with self._file.read() as tx:
            return batches.of_client(tx, batch_id, None)

    def cancel(self, batch_id: str) -> list[str]:
        """Cancel every job of a batch that has not ended. Return their ids.

        Raises:
            BatchNotFound: there is no such batch.
            BatchEnded: all of its jobs have ended.
        """
        with self._file.write() as tx:
            batch = batches.of_client(tx, batch_id, None)
            if live := [job.id for job in batch.jobs if leases.cancel(tx, job.id)]:
                return live
            raise BatchEnded(batch.status)


def _enter(tx: Transaction, index: int, entry: Entry) -> str:
    """Enter or join a job; its id."""
    request, submission = entry.request, replace(entry.submission, priority=BATCH_PRIORITY)
    try:
        job, _ = submissions.submit(tx, request, Origin.ASYNC, None, submission, entry.gone)
        batches.refuse_if_in_many(tx, job.id)
    except (JobConflict, TooManyJoined, TooManyBatches) as exc:
        raise BatchedJobRefused(index, exc) from exc
    return job.id


class BatchService:
    """Batches off the event loop, next to the jobs of the ingress."""

    def __init__(self, jobs: JobService, max_waiting: int) -> None:
        self.store = BatchStore(jobs.registry.file)
        self._jobs = jobs
        self._max_waiting = max_waiting

    async def submit(self, new: NewBatch, entries: Sequence[Entry]) -> Batch:
        """Enter a batch; see `BatchStore`."""
        checked = [
            replace(entry, gone=await self._jobs.gone(entry.request, entry.submission))
            for entry in entries
        ]
        write = self._jobs.threads.write
        batch, is_new = await write(self.store.submit, new, checked, self._max_waiting)
        if is_new:
            logger.info("batch submitted", extra={"batch_id": batch.id, "jobs": batch.size})
            self._jobs.announce(*(job.id for job in batch.jobs))
        return batch

    async def get(self, batch_id: str) -> Batch:
        """Return a batch; see `BatchStore`."""
        return await self._jobs.threads.read(self.store.get, batch_id)

    async def cancel(self, batch_id: str) -> None:
        """Cancel the jobs of a batch that have not ended; see `BatchStore`."""
        self._jobs.announce(*await self._jobs.threads.write(self.store.cancel, batch_id))
