"""One step of scaling: from what is there to how many workers are wanted, with reasons.

`plan` says what the work needs. This module turns that into decisions that do not swing: more
workers at most once in `cooldown_up_s`, fewer only after a surplus has lasted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.scaling.plan import Need, Plan, make_plan
from orchestrator.scaling.rules import ScalingRules
from orchestrator.scaling.supply import ROUNDING
from orchestrator.scaling.values import (
    Decision,
    Memory,
    Observation,
    Offer,
    OfferKey,
    Trend,
)


@dataclass(frozen=True, slots=True)
class Step:
    """The decisions, one for each offer that has or wants workers, and what to remember."""

    decisions: tuple[Decision, ...]
    memory: Memory


def step(seen: Observation, memory: Memory, rules: ScalingRules, now: float) -> Step:
    """Decide how many workers of each offer are wanted at the instant `now`, in seconds.

    Call it every few seconds with the `memory` of the call before; `{}` is right after a start,
    and then a surplus has to last once more before workers are drained. The costs of all wanted
    workers together are within the budget, even if the prices have risen.
    """
    plan = make_plan(seen, rules, now)
    found = [
        _settle(offer, plan.needs[offer.key], seen, memory, rules, now) for offer in seen.offers
    ]
    held = _within_limits(found, seen, rules)
    decisions = tuple(
        Decision(*one.offer.key, one.had, one.wanted, _reason(one, plan))
        for one in held
        if one.had or one.wanted
    )
    return Step(decisions, {one.offer.key: one.trend for one in held if one.trend != Trend()})


@dataclass(frozen=True, slots=True)
class _Settled:
    """A decision in the making. `why` is a sentence where the need alone does not explain it."""

    offer: Offer
    need: Need
    had: int
    wanted: int
    trend: Trend
    why: str = ""

    @property
    def kept(self) -> int:
        """Return the workers that are kept although they are not needed."""
        return max(self.wanted - self.need.count, 0)


def _settle(
    offer: Offer, need: Need, seen: Observation, memory: Memory, rules: ScalingRules, now: float
) -> _Settled:
    had, trend = seen.machines_of(offer).count, memory.get(offer.key, Trend())
    if need.count >= had:
        return _raise(offer, need, had, trend, rules, now)
    return _lower(offer, need, had, trend, rules, now)


def _raise(
    offer: Offer, need: Need, had: int, trend: Trend, rules: ScalingRules, now: float
) -> _Settled:
    is_cooling = trend.raised_at is not None and now - trend.raised_at < rules.cooldown_up_s
    if need.count == had or is_cooling:
        why = "Workers were added a moment ago." if need.count > had else ""
        return _Settled(offer, need, had, had, Trend(trend.raised_at), why)
    return _Settled(offer, need, had, need.count, Trend(raised_at=now))


def _lower(
    offer: Offer, need: Need, had: int, trend: Trend, rules: ScalingRules, now: float
) -> _Settled:
    if need.count > 0 and had - need.count <= had * rules.hysteresis:
        why = f"{_workers(need.count)} would suffice, but the surplus is small."
        return _Settled(offer, need, had, had, Trend(trend.raised_at), why)
    since = now if trend.surplus_since is None else trend.surplus_since
    peak = max(need.count, trend.surplus_peak if trend.surplus_since is not None else 0)
    if now - since < rules.cooldown_down_s:
        why = (
            f"{_workers(need.count)} would suffice, but only since {now - since:.0f} s of "
            f"{rules.cooldown_down_s:.0f} s."
        )
        return _Settled(offer, need, had, had, Trend(trend.raised_at, since, peak), why)
    wanted = min(peak, had)
    # What is kept beyond the present need has to be a surplus for another window.
    left = (
        Trend(trend.raised_at, now, need.count) if wanted > need.count else Trend(trend.raised_at)
    )
    why = f"No more than {wanted} were needed at any time in the last {now - since:.0f} s."
    return _Settled(offer, need, had, wanted, left, why)


def _within_limits(found: list[_Settled], seen: Observation, rules: ScalingRules) -> list[_Settled]:
    """Drop workers that are kept without being needed, the dearest first, where a limit is broken.

    What the plan needs is within all limits. Only the surplus that is kept can break one.
    """
    by_key = {one.offer.key: one for one in found}
    for one in sorted(found, key=lambda one: -one.offer.usd_per_minute):
        there = {
            key: other.wanted + seen.machines_of(other.offer).draining
            for key, other in by_key.items()
        }
        excess = min(_excess(one.offer, there, seen, rules), one.kept)
        if excess > 0:
            why = "The budget or a limit leaves no room for workers that are not needed."
            by_key[one.offer.key] = replace(one, wanted=one.wanted - excess, why=why)
    return list(by_key.values())


def _excess(
    offer: Offer, there: Mapping[OfferKey, int], seen: Observation, rules: ScalingRules
) -> int:
    """Return how many workers of an offer have to go for the limits to be kept."""
    at_provider = sum(count for key, count in there.items() if key[0] == offer.provider)
    allowed = rules.provider_limits.get(offer.provider, at_provider)
    excess = max(there[offer.key] - offer.max_workers, at_provider - allowed)
    over_usd = sum(there[other.key] * other.usd_per_hour for other in seen.offers)
    over_usd -= rules.budget_usd_per_hour
    if offer.usd_per_hour > 0:
        excess = max(excess, math.ceil(over_usd / offer.usd_per_hour - ROUNDING))
    return excess


def _reason(one: _Settled, plan: Plan) -> str:
    """Return why `wanted` workers are wanted, as whole sentences for people."""
    sentences = [f"{_action(one)}.", _use(one)]
    if one.why:
        sentences.append(one.why)
    if one.need.limit:
        sentences.append(f"More are needed, but {one.need.limit} does not allow them.")
    if plan.impossible_jobs:
        sentences.append(f"{plan.impossible_jobs} jobs require a card that no offer has.")
    return " ".join(sentences)


def _action(one: _Settled) -> str:
    if one.wanted > one.had:
        return f"Start {_workers(one.wanted - one.had)} in addition to {one.had}"
    if one.wanted == one.had:
        return f"Keep {_workers(one.had)}"
    if one.wanted:
        return f"Drain {_workers(one.had - one.wanted)} of {one.had}"
    return "Drain the only worker" if one.had == 1 else f"Drain all {one.had} workers"


def _use(one: _Settled) -> str:
    need = one.need
    if not need.count:
        return "No work is left for them."
    verb = "is" if need.count == 1 else "are"
    price = f"${one.offer.usd_per_minute:.4f} for a finished minute"
    return f"{_workers(need.count)} {verb} needed to finish the work in time, at {price}."


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
