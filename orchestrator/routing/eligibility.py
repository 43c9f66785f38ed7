"""Whether a worker may have a job now, and if not, why not."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from orchestrator.routing.order import latest_start
from orchestrator.routing.rules import RoutingRules
from orchestrator.routing.values import QueuedJob, Situation, Tier, Worker


class Refusal(StrEnum):
    """Why a worker may not have a job. The values are sentences for a job's page."""

    FAILED_HERE = "The job failed on this worker before."
    WRONG_GPU = "The GPU of this worker does not meet the job's requirements."
    TIER_CLOSED = "The job waits for a worker of a cheaper tier; it has not overflowed yet."


def refusal(
    worker: Worker,
    job: QueuedJob,
    situation: Situation,
    rules: RoutingRules,
    *,
    order: Sequence[Tier],
    now: float,
) -> Refusal | None:
    """Return why `worker` may not have `job` now; None if it may. `order` is `tier_order`'s."""
    if worker.worker_id in job.failed_on:
        return Refusal.FAILED_HERE
    if not job.requires.are_met_by(worker.gpu):
        return Refusal.WRONG_GPU
    place = _place(worker.tier, job, situation, order)
    return None if _is_open(place, job, situation, rules, now) else Refusal.TIER_CLOSED


def _place(tier: Tier, job: QueuedJob, situation: Situation, order: Sequence[Tier]) -> int:
    """Return how many preferred tiers have live workers that could run the job.

    A tier without such workers is skipped, since nothing is gained by waiting for it.
    """
    preferred = frozenset(order[: order.index(tier)])
    able = {
        group.tier
        for group in situation.groups
        if group.tier in preferred and group.live > 0 and job.requires.are_met_by(group.gpu)
    }
    return len(able)


def _is_open(
    place: int, job: QueuedJob, situation: Situation, rules: RoutingRules, now: float
) -> bool:
    if place == 0:
        return True
    latest = latest_start(job, rules)
    if latest is not None and now >= latest:
        return True
    rule = rules.overflow[place - 1]
    is_old = now - job.submitted_at >= rule.min_age_s
    return is_old or situation.queue_length >= rule.min_queue_length
