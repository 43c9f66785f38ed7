"""Jobs, workers and situations for the tests of routing."""

from __future__ import annotations

from orchestrator.gpus import read_gpu_class
from orchestrator.routing import Accounts, QueuedJob, Situation, Tier, Worker, WorkerGroup

PROVIDERS = {
    Tier.MAIN: "salad",
    Tier.TRANSIENT: "vast",
    Tier.EXPENSIVE: "runpod",
    Tier.BUFFER: "local",
}


def a_worker(
    tier: Tier = Tier.MAIN, gpu_class: str = "RTX-3090-24GB", name: str | None = None, free: int = 1
) -> Worker:
    """Return a worker of the tier's usual provider."""
    gpu = read_gpu_class(gpu_class)
    return Worker(name or f"{tier}-1", tier, PROVIDERS[tier], gpu_class, gpu, free)


def groups_of(*workers: Worker) -> tuple[WorkerGroup, ...]:
    """Return the groups that a store would count, one for each worker."""
    return tuple(
        WorkerGroup(worker.tier, worker.provider, worker.gpu_class, worker.gpu, 1)
        for worker in workers
    )


def situation_of(
    *workers: Worker,
    queue_length: int = 1,
    accounts: Accounts | None = None,
    prices: dict[tuple[str, str], float] | None = None,
) -> Situation:
    """Return a situation in which exactly these workers are live."""
    return Situation(queue_length, groups_of(*workers), accounts or Accounts(), prices or {})


def a_job(name: str = "job", client: str = "a", submitted_at: float = 0.0, **facts) -> QueuedJob:  # type: ignore[no-untyped-def]
    """Return a queued job."""
    return QueuedJob(name, client, submitted_at, **facts)
