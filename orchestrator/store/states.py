"""The states of a job, and every change between them, in one table.

    submit ─► queued ──claim──► running ──succeed──► succeeded
                ▲  │               │ │ │
                │  └──cancel──┐    │ │ └──reject───► failed      the input is at fault
                │             ▼    │ └────bury─────► dead        too many failures
                │         cancelled◄─cancel
                └──────return──────┘   an interruption, or a failure that another machine may cure

A job that has ended as failed, cancelled or dead can be queued again (`again`), as its next run. So
can a success whose output no longer exists (`redo`).

This is the only table of them: the orchestrator and the ingress of a worker both change jobs by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

PUBLISHING = "publishing"  # the phase in which the service holds the lease, not the worker


class JobState(StrEnum):
    """What a job is at present."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing happens to the job by itself any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


STATUSES: Mapping[str, tuple[JobState, ...]] = MappingProxyType(
    {
        **{str(state): (state,) for state in JobState},
        "failed": (JobState.FAILED, JobState.DEAD),
    }
)
"""The states behind each status of the job API. A dead job has failed, too."""


def status_of(state: JobState) -> str:
    """Return the status that clients are shown; they do not know `dead`."""
    return "failed" if state is JobState.DEAD else str(state)


class Change(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    REJECT = "reject"
    BURY = "bury"
    RETURN = "return"
    CANCEL = "cancel"
    AGAIN = "again"
    REDO = "redo"


TRANSITIONS: Mapping[tuple[JobState, Change], JobState] = MappingProxyType(
    {
        (JobState.QUEUED, Change.CLAIM): JobState.RUNNING,
        (JobState.QUEUED, Change.CANCEL): JobState.CANCELLED,
        # Only a claimed job at an ingress, whose claim nobody resumes.
        (JobState.QUEUED, Change.BURY): JobState.DEAD,
        (JobState.RUNNING, Change.SUCCEED): JobState.SUCCEEDED,
        (JobState.RUNNING, Change.REJECT): JobState.FAILED,
        (JobState.RUNNING, Change.BURY): JobState.DEAD,
        (JobState.RUNNING, Change.RETURN): JobState.QUEUED,
        (JobState.RUNNING, Change.CANCEL): JobState.CANCELLED,
        (JobState.FAILED, Change.AGAIN): JobState.QUEUED,
        (JobState.CANCELLED, Change.AGAIN): JobState.QUEUED,
        (JobState.DEAD, Change.AGAIN): JobState.QUEUED,
        (JobState.SUCCEEDED, Change.REDO): JobState.QUEUED,
    }
)


def after(state: JobState, change: Change) -> JobState | None:
    """Return the state that `change` leads to; None if it is not allowed in `state`."""
    return TRANSITIONS.get((state, change))


class AttemptEnd(StrEnum):
    """How one attempt at a job ended."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"  # the input is at fault
    FAILED = "failed"  # this machine, or the processing, is at fault
    INTERRUPTED = "interrupted"  # the worker fell silent, was drained, or lost the claim's answer
    CANCELLED = "cancelled"

    @property
    def is_reported(self) -> bool:
        """Whether the worker itself reported this end, and may report it again."""
        return self in (AttemptEnd.SUCCEEDED, AttemptEnd.REJECTED, AttemptEnd.FAILED)
