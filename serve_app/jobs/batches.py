"""Batches at one ingress: many jobs that are submitted together, read together, cancelled together.

A batch is entered in one transaction, with all of its jobs or not at all. Its jobs are jobs like
all others, but those that are submitted alone are started before them for a while.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.store import batches
from orchestrator.store.batch_values import Batch, NewBatch
from orchestrator.store.database import Database, Transaction
from orchestrator.store.errors import JobConflict, QueueFull
from serve_app.contract.requests import JobRequest
from serve_app.jobs import leases, submissions
from serve_app.jobs.job import BATCH_PRIORITY, Job, Origin, SubmissionOptions, TooManyJoined
from serve_app.jobs.service import JobService
from serve_app.jobs.statements import HERE

logger = logging.getLogger(__name__)

MAX_BATCHES = 64  # of one job


class BatchConflict(Exception):
    """The idempotency key belongs to a batch with different content."""


class BatchedJobRefused(Exception):
    """A job of a batch cannot be entered, and so the whole batch is not. `index` is the job's, and
    `reason` what the registry would raise for the job alone.
    """

    def __init__(self, index: int, reason: JobConflict | TooManyJoined) -> None:
        super().__init__(f"{index}: {reason}")
        self.index, self.reason = index, reason


@dataclass(frozen=True, slots=True)
class Entry:
    """A job of a batch. `gone`: the job of an earlier success whose output no longer exists."""

    request: JobRequest
    submission: SubmissionOptions
    gone: Job | None = None


def content_key(entries: Sequence[Entry], named: Sequence[str | None]) -> str:
    """Return a digest of what a batch asks for. `named`: the ids that its caller has chosen."""
    content = [
        (name, submissions.new_job(each.request, None, HERE).content_key, each.submission.metadata)
        for name, each in zip(named, entries, strict=True)
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        with self._file.write() as tx:
            if (known := self._known(tx, new)) is not None:
                return known, False
            if batches.count_waiting(tx) + len(entries) > max_waiting:
                raise QueueFull(f"more than {max_waiting} jobs of batches would wait")
            ids = [_enter(tx, index, entry) for index, entry in enumerate(entries)]
            batches.enter(tx, new, ids)
            batch = batches.get(tx, new.id)
            assert batch is not None
            return batch, True

    def get(self, batch_id: str) -> Batch | None:
        """Return a batch; None if there is none, or if it has been forgotten."""
        with self._file.read() as tx:
            return batches.get(tx, batch_id)

    def cancel(self, batch_id: str) -> tuple[Batch, list[str]] | None:
        """Cancel every job of a batch that has not ended. Return the batch and these jobs."""
        with self._file.write() as tx:
            batch = batches.get(tx, batch_id)
            if batch is None:
                return None
            live = [job.id for job in batch.jobs if leases.cancel(tx, job.id)]
            return batches.get(tx, batch_id) or batch, live

    @staticmethod
    def _known(tx: Transaction, new: NewBatch) -> Batch | None:
        if new.idempotency_key is None:
            return None
        batch_id = batches.id_of_key(tx, new.client, new.idempotency_key)
        batch = None if batch_id is None else batches.get(tx, batch_id)
        if batch is not None and batch.content_key != new.content_key:
            raise BatchConflict(batch.id)
        return batch


def _enter(tx: Transaction, index: int, entry: Entry) -> str:
    """Enter or join a job; its id."""
    request, submission = entry.request, replace(entry.submission, priority=BATCH_PRIORITY)
    try:
        job, is_new = submissions.submit(tx, request, Origin.ASYNC, None, submission, entry.gone)
        if not is_new and batches.count_batches(tx, job.id) >= MAX_BATCHES:
            raise TooManyJoined(job.id)
    except (JobConflict, TooManyJoined) as exc:
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
            logger.info("batch entered", extra={"batch_id": batch.id, "jobs": batch.size})
            self._jobs.announce(*(job.id for job in batch.jobs))
        return batch

    async def get(self, batch_id: str) -> Batch | None:
        """Return a batch, None if the id is unknown."""
        return await self._jobs.threads.read(self.store.get, batch_id)

    async def cancel(self, batch_id: str) -> tuple[Batch, bool] | None:
        """Cancel the jobs of a batch that have not ended. Return the batch and whether there were
        any; None if the id is unknown.
        """
        cancelled = await self._jobs.threads.write(self.store.cancel, batch_id)
        if cancelled is None:
            return None
        batch, live = cancelled
        self._jobs.announce(*live)
        return batch, bool(live)
