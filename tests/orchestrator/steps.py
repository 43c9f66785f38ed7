"""Steps that tests of the store have in common."""

from __future__ import annotations

from orchestrator.store.values import (
    AttemptName,
    Beat,
    Completion,
    Failure,
    Lease,
    ListedJob,
)
from tests.orchestrator.databases import Bench, worker

DONE = Completion("https://files.example/job.mp4", {"total_time": 1.5})
CRASHED = Failure("The GPU fell over.", {"code": "stage_failed"})


def claimed(bench: Bench, name: str = "w1") -> Lease:
    lease = bench.store.claim(worker(name))
    assert lease is not None
    return lease


def name_of(lease: Lease) -> AttemptName:
    return AttemptName(lease.job.id, lease.job.worker_id, lease.attempt)


def heartbeat(name: str, *jobs: ListedJob) -> Beat:
    return Beat(worker(name), is_busy=bool(jobs), jobs=jobs)
