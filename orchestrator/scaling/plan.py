"""How many workers of each offer the work needs, before cooldown and hysteresis.

1. Workers that are there already and are needed to finish the work in time.
2. New ones that come in time.
3. New ones that make up for what will be late in any case.

Each time the cheapest come first, by dollars for a finished minute. Work that only some offers can
do is planned before work that more of them can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from orchestrator.scaling.rules import ScalingRules
from orchestrator.scaling.supply import ROUNDING, Supply, cumulative_loads
from orchestrator.scaling.values import Observation, Offer, OfferKey


@dataclass(frozen=True, slots=True)
class Need:
    """The workers that one offer should have. `limit` names what kept the plan from asking for
    more, if anything did.
    """

    count: int = 0
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs by offer. `impossible_jobs` require a card that no offer has."""

    needs: dict[OfferKey, Need]
    impossible_jobs: int = 0


@dataclass(frozen=True, slots=True)
class Wave:
    """`count` machines of which half are up within `half_up_s`; 0 if all of them are up."""

    count: int
    half_up_s: float


@dataclass(slots=True)
class _Counts:
    """The workers that are planned so far, within budget and limits."""

    seen: Observation
    rules: ScalingRules
    planned: dict[OfferKey, int] = field(default_factory=dict)
    limits: dict[OfferKey, str] = field(default_factory=dict)

    def of(self, offer: Offer) -> int:
        return self.planned.get(offer.key, 0)

    def add(self, offer: Offer, wanted: int) -> int:
        """Add up to `wanted` workers; return how many there was room for."""
        room, limit = self._room(offer)
        if wanted > room:
            self.limits[offer.key] = limit
        added = max(min(wanted, room), 0)
        self.planned[offer.key] = self.of(offer) + added
        return added

    def _room(self, offer: Offer) -> tuple[int, str]:
        rules = self.rules
        there = {other.key: self.of(other) + self._draining(other) for other in self.seen.offers}
        cost = sum(there[other.key] * other.usd_per_hour for other in self.seen.offers)
        at_provider = sum(count for key, count in there.items() if key[0] == offer.provider)
        limit = f"its limit of {offer.max_workers} workers"
        rooms = [(offer.max_workers - there[offer.key], limit)]
        if offer.usd_per_hour > 0:
            left = (rules.budget_usd_per_hour - cost) / offer.usd_per_hour
            budget = f"the budget of ${rules.budget_usd_per_hour:.2f} per hour"
            rooms.append((math.floor(left + ROUNDING), budget))
        allowed = rules.provider_limits.get(offer.provider)
        if allowed is not None:
            limit = f"the limit of {allowed} workers at {offer.provider}"
            rooms.append((allowed - at_provider, limit))
        return min(rooms, key=lambda room: room[0])

    def _draining(self, offer: Offer) -> int:
        return self.seen.machines_of(offer).draining


def make_plan(seen: Observation, rules: ScalingRules, now: float) -> Plan:
    """Return the workers that the work and the arrivals need, within budget and limits."""
    offers = sorted(seen.offers, key=lambda offer: (offer.usd_per_minute, offer.key))
    able = {
        requires: frozenset(offer.key for offer in offers if requires.are_met_by(offer.gpu))
        for requires in {item.requires for item in seen.work}
    }
    counts = _Counts(seen, rules)
    kinds = set(able.values()) - {frozenset()}
    for kind in sorted(kinds, key=lambda kind: (len(kind), sorted(kind))):
        part = replace(
            seen,
            offers=tuple(offer for offer in offers if offer.key in kind),
            work=tuple(item for item in seen.work if able[item.requires] <= kind),
        )
        _plan_work(part, counts, now)
    needs = {offer.key: Need(counts.of(offer), counts.limits.get(offer.key)) for offer in offers}
    return Plan(needs, sum(item.jobs for item in seen.work if not able[item.requires]))


def _plan_work(part: Observation, counts: _Counts, now: float) -> None:
    """Add the workers that the work of one kind needs in addition to those that are planned."""
    rules, supply = counts.rules, Supply()
    loads = cumulative_loads(part.work, now)
    # A job runs on one worker, so more workers than jobs would be idle.
    most = sum(item.jobs for item in part.work)

    def extend(offer: Offer, wave: Wave, late_s: float | None = None) -> None:
        missing = supply.missing(
            loads,
            offer.frames_per_s,
            wave.half_up_s,
            min_use_s=rules.min_use_s if wave.half_up_s and late_s is None else 0.0,
            catch_up_s=late_s,
        )
        allowed = most - sum(counts.of(other) for other in part.offers)
        wanted = min(missing, allowed, wave.count)
        if wanted > 0:
            added = counts.add(offer, wanted)
            supply.add(added * offer.frames_per_s, wave.half_up_s)

    spare = [(offer, _spare_waves(offer, part, counts, supply)) for offer in part.offers]
    for offer, waves in spare:
        for wave in waves:
            extend(offer, wave)
    for is_late in (False, True):
        for offer in part.offers:
            late_s = rules.catch_up_s if is_late else None
            extend(offer, Wave(offer.max_workers, offer.startup_s), late_s)


def _spare_waves(offer: Offer, part: Observation, counts: _Counts, supply: Supply) -> list[Wave]:
    """Add what the planned workers of an offer draw; return its machines beyond these."""
    planned, spare = counts.of(offer), []
    for wave in waves_of(offer, part, counts.rules):
        used = min(planned, wave.count)
        supply.add(used * offer.frames_per_s, wave.half_up_s)
        spare.append(Wave(wave.count - used, wave.half_up_s))
        planned -= used
    supply.add(planned * offer.frames_per_s, offer.startup_s)
    return [wave for wave in spare if wave.count > 0]


def waves_of(offer: Offer, seen: Observation, rules: ScalingRules) -> tuple[Wave, Wave]:
    """Return the machines of an offer that are up, and those that are starting.

    Those that have been starting for longer than `give_up_s` do not count.
    """
    machines = seen.machines_of(offer)
    starting = sum(age <= rules.give_up_s for age in machines.starting_s)
    return Wave(machines.ready, 0.0), Wave(starting, offer.startup_s)
