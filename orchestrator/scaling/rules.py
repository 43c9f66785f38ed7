"""The configuration of scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """What scaling may spend, and how fast it reacts. The defaults are guesses, except where
    docs/orchestrator-scaling.md has a figure.

    - `budget_usd_per_hour`: no more workers are wanted than this pays for, after those that drain.
    - `provider_limits`: how many workers a provider may have, those that drain included.
    - `target_wait_s`: how long a job without a deadline should wait at most.
    - `catch_up_s`: the time from now in which work is made up for that will be late in any case.
    - `min_use_s`: a worker is started for work that it can be expected to help with for this long.
    - `give_up_s`: a machine that has been starting for longer is no longer counted on.
    - `cooldown_up_s`: the least time between two increases of one offer.
    - `cooldown_down_s`: how long a surplus has to last before workers are drained.
    - `hysteresis`: a surplus of this share of the workers, or less, is kept.
    """

    budget_usd_per_hour: float
    provider_limits: Mapping[str, int] = field(default_factory=dict)
    target_wait_s: float = 300.0
    catch_up_s: float = 120.0
    min_use_s: float = 20.0
    give_up_s: float = 1800.0
    cooldown_up_s: float = 30.0
    cooldown_down_s: float = 60.0
    hysteresis: float = 0.05
