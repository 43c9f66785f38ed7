"""Batches as values: jobs that were submitted together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.store.states import JobState, status_of
from orchestrator.store.values import NewJob

# Of 0 to 9; jobs that are submitted alone have 5. As a batch may have many jobs, they wait while
# others of the same client come, for half an hour or so.
BATCH_PRIORITY = 0
MAX_BATCHES = 64  # of one job


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch as a client submits it. `content_key`: see `content_key_of`."""

    id: str
    client: str
    content_key: str
    webhook_url: str | None = field(default=None, repr=False)
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class BatchedJob:
    """A job of a batch. `progress`: from 0 to 1. `published_attempt`: see `Job`."""

    id: str
    state: JobState
    progress: float
    output_url: str | None = field(repr=False)
    published_attempt: int | None
    error: str | None
    ended_at: float | None

    @property
    def status(self) -> str:
        """The state as clients are shown it."""
        return status_of(self.state)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is stored. `jobs` are in the order in which they were sent."""

    id: str
    client: str
    content_key: str
    size: int
    webhook_url: str | None = field(repr=False)
    metadata: dict[str, Any] | None
    created_at: float
    jobs: tuple[BatchedJob, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs have which status."""
        found = Counter(job.status for job in self.jobs)
        names = ("queued", "running", "succeeded", "failed", "cancelled")
        return {name: found[name] for name in names}

    @property
    def has_ended(self) -> bool:
        """Whether no job waits or runs."""
        return all(job.state.is_terminal for job in self.jobs)

    @property
    def ended_at(self) -> float | None:
        """When the last job ended; None while one waits or runs."""
        if not self.has_ended:
            return None
        return max((job.ended_at or 0.0 for job in self.jobs), default=self.created_at)

    @property
    def status(self) -> str:
        """`queued` until the first job runs, then `running`; in the end `succeeded` if all have,
        else `failed` if any has, else `cancelled`.
        """
        counts = self.counts
        if not self.has_ended:
            return "queued" if counts["queued"] == len(self.jobs) else "running"
        if counts["succeeded"] == len(self.jobs):
            return "succeeded"
        return "failed" if counts["failed"] else "cancelled"

    @property
    def progress(self) -> float:
        """The mean of the jobs' progress; a job that has ended counts as done."""
        done = sum(1.0 if job.state.is_terminal else job.progress for job in self.jobs)
        return done / len(self.jobs) if self.jobs else 1.0


def as_json(batch: Batch) -> dict[str, Any]:
    """Return a batch as JSON that `batch_of` reads."""
    return asdict(batch)


def batch_of(values: Mapping[str, Any]) -> Batch:
    """Return a batch that `as_json` has written."""
    jobs = (BatchedJob(**{**job, "state": JobState(job["state"])}) for job in values["jobs"])
    return Batch(**{**values, "jobs": tuple(jobs)})


def content_key_of(jobs: Sequence[NewJob], named: Sequence[str | None]) -> str:
    """Return a digest of what a batch asks for. `named`: the ids that its caller has chosen."""
    content = [
        (name, job.content_key, None if job.metadata is None else dict(job.metadata))
        for name, job in zip(named, jobs, strict=True)
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
