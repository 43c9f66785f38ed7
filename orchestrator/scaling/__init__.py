"""How many workers are wanted, of which class, at which provider (docs/orchestrator-scaling.md).

1. `learnt`: how fast a class is and how long jobs are, from reports.
2. `plan`: how many workers the work needs, the cheapest first, within budget and limits.
3. `step`: decisions with reasons, with cooldown and hysteresis. Pure, like everything above.
4. `observe`: what the store and the providers say, as `step` takes it.
5. `fleet`: what providers do. `dry_run` only logs, `process` starts workers here.

The loop that calls all of this is `orchestrator.service.scaling_loop`.
"""

from orchestrator.scaling.rules import ScalingRules
from orchestrator.scaling.step import Step, step
from orchestrator.scaling.values import (
    Decision,
    Machines,
    Memory,
    Observation,
    Offer,
    Trend,
    Work,
)

__all__ = [
    "Decision",
    "Machines",
    "Memory",
    "Observation",
    "Offer",
    "ScalingRules",
    "Step",
    "Trend",
    "Work",
    "step",
]
