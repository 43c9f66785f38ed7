"""Which tier comes before which, and which job of a client before which."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.routing.rules import RoutingRules
from orchestrator.routing.values import MAX_PRIORITY, Prices, QueuedJob, Tier, WorkerGroup


def tier_order(
    groups: Iterable[WorkerGroup], prices: Prices, rules: RoutingRules
) -> tuple[Tier, ...]:
    """Return all tiers, the preferred one first.

    The price of a tier is that of its cheapest live group. Tiers with a price are sorted by it,
    among the places that they have in the order of `Tier`; the others keep their place.
    """
    cheapest: dict[Tier, float] = {}
    for group in groups:
        price = prices.get((group.provider, group.gpu_class))
        if price is not None and group.live > 0 and group.tier not in rules.always_last:
            cheapest[group.tier] = min(price, cheapest.get(group.tier, price))
    by_price = iter(sorted(cheapest, key=lambda tier: (cheapest[tier], list(Tier).index(tier))))
    reordered = [next(by_price) if tier in cheapest else tier for tier in Tier]
    return tuple(sorted(reordered, key=lambda tier: tier in rules.always_last))


def latest_start(job: QueuedJob, rules: RoutingRules) -> float | None:
    """Return the instant from which the deadline is in danger; None without a deadline."""
    if job.deadline is None:
        return None
    return job.deadline - job.expected_s - rules.deadline_margin_s


def due_at(job: QueuedJob, rules: RoutingRules) -> float:
    """Return the instant at which a job should have started. The earliest of a client is first.

    It depends on nothing that changes while the job waits, so it can be stored and indexed. It is
    never before the submission: a job therefore waits at most for the jobs of its client that
    were submitted before it was due, whatever their priorities and deadlines are.
    """
    patience = rules.max_wait_s * (MAX_PRIORITY - job.priority) / MAX_PRIORITY
    due = job.submitted_at + patience
    latest = latest_start(job, rules)
    return due if latest is None else max(job.submitted_at, min(due, latest))
