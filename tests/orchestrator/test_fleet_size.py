"""How many workers are wanted: for the work, within limits, without swinging, with reasons."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.gpus import read_gpu_class
from orchestrator.routing import Requirements
from orchestrator.scaling import Machines, Observation, Offer, ScalingRules, Step, Work, step
from orchestrator.scaling.dry_run import DryRun
from orchestrator.scaling.fleet import Machine, MachineState, choose_to_drain
from orchestrator.scaling.supply import Supply, cumulative_loads, useful_s

ROOT = Path(__file__).resolve().parents[2]
RULES = ScalingRules(budget_usd_per_hour=100.0)


def an_offer(
    provider: str = "salad", gpu_class: str = "RTX-3090-24GB", usd: float = 0.09, **facts
) -> Offer:
    """Return an offer of workers that draw 25 frames/s."""
    known = {"frames_per_s": 25.0, "startup_s": 600.0, "max_workers": 100} | facts
    return Offer(provider, gpu_class, read_gpu_class(gpu_class), usd, **known)


CHEAP = an_offer()
FAST = an_offer("vast", "RTX-4090-24GB", 0.30, startup_s=60.0)
BLACKWELL = an_offer("runpod", "RTX-5090-32GB", 0.90, startup_s=60.0, frames_per_s=75.0)


def some_work(jobs: int, *, minutes: float = 1.0, due: float = 3600.0, **facts) -> Work:
    """Return jobs of that many minutes of video each."""
    return Work(jobs * minutes * 1500, due, jobs, **facts)


def decide(seen: Observation, memory=None, rules: ScalingRules = RULES, now: float = 0.0) -> Step:
    return step(seen, memory or {}, rules, now)


def wanted(done: Step) -> dict[str, int]:
    """Return the wanted workers by provider."""
    return {decision.provider: decision.wanted for decision in done.decisions}


# The need


def test_without_work_nothing_is_wanted():
    assert decide(Observation((CHEAP, FAST))).decisions == ()


def test_one_job_gets_one_worker_of_the_cheapest_offer_that_comes_in_time():
    [decision] = decide(Observation((FAST, CHEAP), (some_work(1),))).decisions
    assert (decision.provider, decision.had, decision.wanted) == ("salad", 0, 1)


def test_a_deadline_that_the_cheap_offer_cannot_meet_goes_to_one_that_starts_faster():
    work = some_work(1, due=150.0)
    assert wanted(decide(Observation((CHEAP, FAST), (work,)))) == {"vast": 1}


def test_work_that_is_late_in_any_case_is_made_up_for_by_the_cheapest():
    work = some_work(4, due=-100.0)
    assert wanted(decide(Observation((CHEAP,), (work,)))) == {"salad": 4}


def test_more_work_for_the_same_time_needs_more_workers_and_later_work_fewer():
    def workers(jobs: int, due: float) -> int:
        return wanted(decide(Observation((CHEAP,), (some_work(jobs, due=due),))))["salad"]

    assert workers(10, 3600.0) < workers(100, 3600.0)
    assert workers(100, 36_000.0) < workers(100, 3600.0)


def test_workers_that_are_there_are_enough_before_new_ones_are_rented():
    seen = Observation((CHEAP, FAST), (some_work(60),), {FAST.key: Machines(ready=1)})
    assert wanted(decide(seen)) == {"vast": 1}  # 60 minutes are drawn in an hour at 25 frames/s


def test_there_are_never_more_workers_than_jobs():
    work = some_work(2, minutes=1000.0, due=600.0)
    assert wanted(decide(Observation((CHEAP, FAST), (work,)))) == {"salad": 2}


def test_a_machine_that_has_been_starting_for_too_long_is_replaced():
    work, age = some_work(1), RULES.give_up_s + 1
    seen = Observation((CHEAP,), (work,), {CHEAP.key: Machines(starting_s=(10.0,))})
    assert wanted(decide(seen)) == {"salad": 1}
    stuck = replace(seen, machines={CHEAP.key: Machines(starting_s=(age,))})
    assert decide(stuck).decisions[0].wanted == 1


# Requirements


def test_work_that_needs_a_card_goes_to_an_offer_that_has_it():
    needs = Requirements(architectures=frozenset({"blackwell"}))
    work = (some_work(3, requires=needs), some_work(1))
    seen = Observation((CHEAP, BLACKWELL), work)
    assert wanted(decide(seen))["runpod"] == 1


def test_work_that_no_offer_can_do_is_named_and_wants_nothing():
    needs = Requirements(min_vram_gb=1000)
    work = (some_work(3, requires=needs), some_work(1))
    [decision] = decide(Observation((CHEAP,), work)).decisions
    assert decision.wanted == 1
    assert "3 jobs require a card that no offer has." in decision.reason


def test_a_worker_for_demanding_work_also_does_other_work():
    needs = Requirements(min_vram_gb=30)
    work = (some_work(1, requires=needs), some_work(1))
    assert wanted(decide(Observation((CHEAP, BLACKWELL), work))) == {"runpod": 1}


# Budget and limits


def test_the_budget_and_each_limit_are_kept_and_named():
    work = (some_work(500, due=1200.0),)
    cases = [
        (ScalingRules(0.5), CHEAP, 5, "the budget of $0.50 per hour"),
        (ScalingRules(100, {"salad": 7}), CHEAP, 7, "the limit of 7 workers at salad"),
        (RULES, replace(CHEAP, max_workers=3), 3, "its limit of 3 workers"),
    ]
    for rules, offer, most, named in cases:
        [decision] = decide(Observation((offer,), work), rules=rules).decisions
        assert decision.wanted == most
        assert f"More are needed, but {named} does not allow them." in decision.reason


def test_what_the_cheapest_offer_cannot_give_comes_from_the_next():
    cheap = replace(CHEAP, max_workers=2)
    counts = wanted(decide(Observation((cheap, FAST), (some_work(500, due=1800.0),))))
    assert counts["salad"] == 2
    assert counts["vast"] > 2


def test_a_price_that_rises_over_the_budget_drains_what_is_not_needed_at_once():
    machines = {CHEAP.key: Machines(ready=10)}
    dear = replace(CHEAP, usd_per_hour=20.0)
    [decision] = decide(Observation((dear,), (some_work(60),), machines)).decisions
    assert decision.wanted == 5
    assert "leaves no room" in decision.reason


offers = st.lists(
    st.builds(
        an_offer,
        st.sampled_from(["salad", "vast", "runpod"]),
        st.sampled_from(["RTX-2070-8GB", "RTX-3090-24GB", "RTX-5090-32GB"]),
        st.one_of(st.just(0.0), st.floats(0.001, 2.0)),
        frames_per_s=st.floats(1, 100),
        startup_s=st.floats(0, 1200),
        max_workers=st.integers(0, 50),
    ),
    max_size=5,
    unique_by=lambda offer: offer.key,
).map(tuple)
works = st.lists(
    st.builds(
        Work,
        st.floats(1, 1e6),
        st.floats(-1e4, 1e5),
        st.integers(1, 50),
        st.sampled_from(
            [
                Requirements(),
                Requirements(min_vram_gb=12),
                Requirements(architectures=frozenset({"turing"})),
            ]
        ),
    ),
    max_size=8,
).map(tuple)
machines = st.builds(
    Machines,
    st.integers(0, 60),
    st.lists(st.floats(0, 4000), max_size=10).map(tuple),
    st.integers(0, 10),
)
all_rules = st.builds(
    ScalingRules,
    st.floats(0, 50),
    st.dictionaries(st.sampled_from(["salad", "vast"]), st.integers(0, 40)),
    hysteresis=st.floats(0, 0.5),
)


@given(offers, works, st.data(), all_rules)
def test_no_sequence_of_steps_breaks_the_budget_or_a_limit(offers, works, data, rules):
    memory = {}
    for now in (0.0, 15.0, 45.0, 300.0):
        there = {offer.key: data.draw(machines) for offer in offers}
        work = works if data.draw(st.booleans()) else ()
        done = step(Observation(offers, work, there), memory, rules, now)
        memory = done.memory
        counts = {(one.provider, one.gpu_class): one.wanted for one in done.decisions}
        draining = {offer.key: there[offer.key].draining for offer in offers}
        cost = sum(counts.get(offer.key, 0) * offer.usd_per_hour for offer in offers)
        left = rules.budget_usd_per_hour - sum(draining[o.key] * o.usd_per_hour for o in offers)
        assert cost <= max(left, 0) + 1e-4
        for provider, most in rules.provider_limits.items():
            left = most - sum(n for key, n in draining.items() if key[0] == provider)
            assert sum(n for key, n in counts.items() if key[0] == provider) <= max(left, 0)
        for offer in offers:
            left = max(offer.max_workers - draining[offer.key], 0)
            assert 0 <= counts.get(offer.key, 0) <= left
        for decision in done.decisions:
            assert decision.reason.endswith(".")


# Cooldown and hysteresis


def test_more_workers_are_asked_for_once_in_the_cooldown():
    first = decide(Observation((CHEAP,), (some_work(1),)), now=1000.0)
    has = {CHEAP.key: Machines(starting_s=(1.0,))}
    seen = Observation((CHEAP,), (some_work(50, due=1800.0),), has)
    soon = decide(seen, first.memory, now=1000.0 + RULES.cooldown_up_s - 1)
    assert [(one.had, one.wanted) for one in soon.decisions] == [(1, 1)]
    later = decide(seen, soon.memory, now=1000.0 + RULES.cooldown_up_s)
    assert later.decisions[0].wanted > 1


def test_workers_are_drained_only_when_the_surplus_has_lasted_and_then_to_zero():
    seen = Observation((CHEAP,), (), {CHEAP.key: Machines(ready=4)})
    first = decide(seen, now=0.0)
    assert wanted(first) == {"salad": 4}
    almost = decide(seen, first.memory, now=RULES.cooldown_down_s - 1)
    assert wanted(almost) == {"salad": 4}
    done = decide(seen, almost.memory, now=RULES.cooldown_down_s)
    assert wanted(done) == {"salad": 0}
    assert done.decisions[0].reason == (
        "Drain all 4 workers. No work is left for them. "
        "No more than 0 were needed at any time in the last 60 s."
    )


def test_work_that_comes_back_in_time_ends_the_surplus():
    idle = Observation((CHEAP,), (), {CHEAP.key: Machines(ready=1)})
    busy = replace(idle, work=(some_work(1),))
    memory = decide(idle, now=0.0).memory
    memory = decide(busy, memory, now=30.0).memory
    assert wanted(decide(idle, memory, now=RULES.cooldown_down_s)) == {"salad": 1}


def test_workers_are_drained_to_the_most_that_was_needed_meanwhile():
    has = {CHEAP.key: Machines(ready=10)}
    idle = Observation((CHEAP,), (), has)
    half = Observation((CHEAP,), (some_work(290),), has)
    memory = decide(idle, now=0.0).memory
    memory = decide(half, memory, now=30.0).memory
    done = decide(idle, memory, now=RULES.cooldown_down_s)
    assert wanted(done) == {"salad": 5}
    later = decide(
        replace(idle, machines={CHEAP.key: Machines(ready=5)}),
        done.memory,
        now=2 * RULES.cooldown_down_s,
    )
    assert wanted(later) == {"salad": 0}


def test_a_small_surplus_is_kept():
    rules = replace(RULES, hysteresis=0.1)
    seen = Observation((CHEAP,), (some_work(590),), {CHEAP.key: Machines(ready=11)})
    memory = decide(seen, rules=rules).memory
    [decision] = decide(seen, memory, rules, now=RULES.cooldown_down_s).decisions
    assert decision.wanted == 11
    assert "the surplus is small" in decision.reason


def test_dearer_workers_are_drained_before_cheaper_ones():
    has = {CHEAP.key: Machines(ready=2), FAST.key: Machines(ready=2)}
    seen = Observation((FAST, CHEAP), (some_work(110),), has)
    memory = decide(seen).memory
    assert wanted(decide(seen, memory, now=RULES.cooldown_down_s)) == {"salad": 2, "vast": 0}


def test_a_decision_says_what_it_costs_and_why():
    [decision] = decide(Observation((CHEAP,), (some_work(1),))).decisions
    assert decision.reason == (
        "Start 1 worker in addition to 0. 1 worker is needed to finish the work in time, "
        "at $0.0015 for a finished minute."
    )


# The arithmetic


@given(st.floats(0, 1e5), st.floats(1, 1e4))
def test_half_of_the_machines_are_up_after_the_time_that_the_offer_names(within_s, half_up_s):
    useful = useful_s(within_s, half_up_s)
    assert -1e-6 <= useful <= within_s
    rate_up = (useful_s(half_up_s + 1e-3, half_up_s) - useful_s(half_up_s, half_up_s)) / 1e-3
    assert rate_up == pytest.approx(0.5, abs=0.01)


@example((Work(1.0, 89_654.0),), 67.0, 1200.0)  # a millionth of what one worker can draw by then
@given(works, st.floats(1, 100), st.floats(0, 1200))
def test_the_missing_workers_are_enough_and_one_fewer_is_not(works, rate, half_up_s):
    loads = cumulative_loads(works, 0.0)
    supply = Supply()
    count = supply.missing(loads, rate, half_up_s, min_use_s=20.0)

    def is_enough(workers: int, rounding: float) -> bool:
        return all(
            workers * rate * useful_s(load.within_s, half_up_s) >= load.frames * (1 + rounding)
            for load in loads
            if useful_s(load.within_s, half_up_s) >= 20.0
        )

    assert is_enough(count, -1e-5)
    assert count <= 0 or not is_enough(count - 1, 1e-5)


# Machines


def test_starting_machines_are_drained_before_idle_ones_and_busy_ones_last():
    def machine(name: str, state: MachineState, age_s: float) -> Machine:
        return Machine(name, "cpu", state, age_s)

    there = [
        machine("busy", MachineState.RUNNING, 1.0),
        machine("old", MachineState.RUNNING, 900.0),
        machine("young", MachineState.RUNNING, 100.0),
        machine("gone", MachineState.DRAINING, 5.0),
        machine("starting", MachineState.STARTING, 50.0),
    ]
    order = choose_to_drain(there, {"busy"}, 10)
    assert order == ("starting", "young", "old", "busy")
    assert choose_to_drain(there, {"busy"}, 2) == order[:2]
    assert choose_to_drain(there, {"busy"}, -1) == ()


async def test_a_dry_run_logs_what_it_would_do(caplog):
    caplog.set_level("INFO")
    fleet = DryRun(clock=lambda: 7.0)
    await fleet.want("RTX-3090-24GB", 2)
    await fleet.want("RTX-3090-24GB", 1)
    first, second = await fleet.have()
    await fleet.drain([first.worker_id, "unknown"])
    assert await fleet.have() == (second,)
    events = [record.message for record in caplog.records]
    assert events == ["a worker would be rented"] * 2 + ["a worker would be drained"]


# The simulated day


def test_the_simulated_day_ends_with_every_job_done_under_each_policy():
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling_policy.py"), "--jobs", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {row["policy"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert {row["jobs"] for row in rows.values()} == {500}
    assert len(rows) == 6
    ours, theirs = rows["target 300 s"], rows["ceil(queue / 4)"]
    assert ours["interrupted_jobs"] < theirs["interrupted_jobs"]
    assert ours["wait_p99_s"] < theirs["wait_p99_s"]
