"""The configuration of routing."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.routing.values import Tier


@dataclass(frozen=True, slots=True)
class OverflowRule:
    """When jobs overflow into a dearer tier: if one of the two limits is reached.

    `min_age_s` is the time since the job was submitted, `min_queue_length` the number of all jobs
    that wait. The age is finite, so every tier takes a job that has waited long enough.
    """

    min_age_s: float
    min_queue_length: int


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """How jobs are distributed to workers. All defaults are guesses.

    - `overflow`: the rules of the second, third and fourth tier that could run a job. The first one
      is always open.
    - `always_last`: tiers that prices do not move. Machines of our own cost next to nothing by the
      hour, but they are a reserve.
    - `max_wait_s`: the time that a job of priority 0 may wait before it is due; a job of priority 9
      is due at once, and the others lie evenly between.
    - `deadline_margin_s`: a job is due this long before the latest start that meets its deadline.
      A job that is due because of its deadline may run in every tier.
    """

    overflow: tuple[OverflowRule, OverflowRule, OverflowRule] = (
        OverflowRule(60.0, 20),
        OverflowRule(300.0, 100),
        OverflowRule(600.0, 200),
    )
    always_last: frozenset[Tier] = frozenset({Tier.BUFFER})
    max_wait_s: float = 3600.0
    deadline_margin_s: float = 60.0
