"""Which worker gets which job, as a pure function (docs/orchestrator-routing.md).

1. `order`: main before transient before expensive before buffer, reordered by prices; the order of
   the jobs of one client.
2. `eligibility`: whether a worker may have a job: requirements, machines that failed it, overflow.
3. `pick`: the job that a claim is answered with, fair between clients.

There is neither a clock nor a database here. Instants are seconds of the database's clock.
"""

from orchestrator.routing.eligibility import Refusal, refusal
from orchestrator.routing.order import due_at, tier_order
from orchestrator.routing.pick import Assignment, assign, charge, pick, rank
from orchestrator.routing.rules import OverflowRule, RoutingRules
from orchestrator.routing.values import (
    Account,
    Accounts,
    QueuedJob,
    Requirements,
    Situation,
    Tier,
    Worker,
    WorkerGroup,
)

__all__ = [
    "Account",
    "Accounts",
    "Assignment",
    "OverflowRule",
    "QueuedJob",
    "Refusal",
    "Requirements",
    "RoutingRules",
    "Situation",
    "Tier",
    "Worker",
    "WorkerGroup",
    "assign",
    "charge",
    "due_at",
    "pick",
    "rank",
    "refusal",
    "tier_order",
]
