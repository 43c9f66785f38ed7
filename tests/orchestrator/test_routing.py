"""Which job a worker gets: the order of tiers and jobs, requirements, and fairness of clients."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_facts import a_job, a_worker, groups_of, situation_of

from orchestrator.gpus import ARCHITECTURES, Gpu, read_gpu_class
from orchestrator.routing import (
    Account,
    Accounts,
    OverflowRule,
    QueuedJob,
    Refusal,
    Requirements,
    RoutingRules,
    Tier,
    Worker,
    assign,
    charge,
    due_at,
    pick,
    rank,
    refusal,
    tier_order,
)

RULES = RoutingRules()
MAIN, TRANSIENT, EXPENSIVE, BUFFER = (a_worker(tier) for tier in Tier)
ALL = (MAIN, TRANSIENT, EXPENSIVE, BUFFER)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "orchestrator-routing.md"


def may_have(worker: Worker, job: QueuedJob, *live: Worker, now: float, queue_length: int = 1):
    """Return why the worker may not have the job while exactly `live` are there."""
    situation = situation_of(*live, queue_length=queue_length)
    order = tier_order(situation.groups, {}, RULES)
    return refusal(worker, job, situation, RULES, order=order, now=now)


# The order of tiers


def test_without_prices_main_is_before_transient_before_expensive_before_buffer():
    assert tier_order(groups_of(*ALL), {}, RULES) == tuple(Tier)


def test_prices_reorder_the_tiers_and_leave_the_buffer_last():
    prices = {
        ("salad", "RTX-3090-24GB"): 0.003,
        ("vast", "RTX-3090-24GB"): 0.001,
        ("runpod", "RTX-3090-24GB"): 0.002,
        ("local", "RTX-3090-24GB"): 0.0,
    }
    order = tier_order(groups_of(*ALL), prices, RULES)
    assert order == (Tier.TRANSIENT, Tier.EXPENSIVE, Tier.MAIN, Tier.BUFFER)


def test_the_price_of_workers_that_are_not_live_does_not_count():
    prices = {("salad", "RTX-3090-24GB"): 0.003, ("vast", "RTX-3090-24GB"): 0.001}
    assert tier_order(groups_of(MAIN), prices, RULES)[0] is Tier.MAIN


@given(st.dictionaries(st.sampled_from(list(Tier)), st.floats(0, 10), max_size=4))
def test_priced_tiers_are_sorted_and_no_tier_is_lost(by_tier):
    prices = {(worker.provider, worker.gpu_class): by_tier.get(worker.tier) for worker in ALL}
    known = {key: price for key, price in prices.items() if price is not None}
    order = tier_order(groups_of(*ALL), known, RULES)
    assert set(order) == set(Tier)
    assert order[-1] is Tier.BUFFER
    priced = [by_tier[tier] for tier in order[:-1] if tier in by_tier]
    assert priced == sorted(priced)


# Overflow


@pytest.mark.parametrize(
    ("worker", "place"), [(TRANSIENT, 0), (EXPENSIVE, 1), (BUFFER, 2)], ids=list(Tier)[1:]
)
def test_a_tier_opens_at_the_age_or_the_queue_length_of_its_rule(worker, place):
    rule, job = RULES.overflow[place], a_job()
    young, short = rule.min_age_s - 1, rule.min_queue_length - 1
    closed = may_have(worker, job, *ALL, now=young, queue_length=short)
    assert closed is Refusal.TIER_CLOSED
    assert may_have(worker, job, *ALL, now=rule.min_age_s, queue_length=short) is None
    assert may_have(worker, job, *ALL, now=young, queue_length=short + 1) is None


def test_a_tier_without_live_workers_is_not_waited_for():
    assert may_have(TRANSIENT, a_job(), TRANSIENT, EXPENSIVE, now=0) is None
    assert may_have(BUFFER, a_job(), BUFFER, now=0) is None


def test_a_tier_whose_cards_cannot_run_the_job_is_not_waited_for():
    job = a_job(requires=Requirements(architectures=frozenset({"blackwell"})))
    blackwell = a_worker(Tier.EXPENSIVE, "RTX-5090-32GB")
    assert may_have(blackwell, job, MAIN, TRANSIENT, blackwell, now=0) is None


def test_a_deadline_in_danger_opens_every_tier():
    job = a_job(deadline=1000.0, expected_s=100.0)
    latest = 1000.0 - 100.0 - RULES.deadline_margin_s
    rules_open_at = [rule.min_age_s for rule in RULES.overflow]
    assert latest > max(rules_open_at)  # so that the age is what has to be excluded
    submitted = a_job(submitted_at=latest - 1, deadline=1000.0, expected_s=100.0)
    assert may_have(BUFFER, submitted, *ALL, now=latest - 0.5) is Refusal.TIER_CLOSED
    assert may_have(BUFFER, submitted, *ALL, now=latest) is None
    assert may_have(BUFFER, job, *ALL, now=latest) is None


def test_an_idle_main_worker_and_not_the_transient_one_gets_a_new_job():
    found = assign([a_job()], [TRANSIENT, MAIN], situation_of(*ALL), RULES, now=0)
    assert [(one.worker, one.job.job_id) for one in found] == [(MAIN, "job")]


# Requirements and failures


@given(
    vram=st.one_of(st.none(), st.floats(1, 200)),
    architecture=st.one_of(st.none(), st.sampled_from(ARCHITECTURES)),
    min_vram_gb=st.floats(0, 200),
    wanted=st.frozensets(st.sampled_from(ARCHITECTURES)),
)
def test_a_worker_never_gets_a_job_whose_requirements_it_does_not_meet(
    vram, architecture, min_vram_gb, wanted
):
    gpu = Gpu(architecture, vram)
    worker = Worker("w", Tier.MAIN, "salad", "some card", gpu)
    job = a_job(requires=Requirements(min_vram_gb, wanted))
    has_enough = not min_vram_gb or (vram is not None and vram >= min_vram_gb)
    is_wanted = not wanted or architecture in wanted
    got = pick(worker, [job], situation_of(worker), RULES, now=1e6)
    assert (got is not None) == (has_enough and is_wanted)


def test_a_job_never_goes_back_to_the_worker_that_failed_it():
    job = a_job(failed_on=frozenset({MAIN.worker_id}))
    other = a_worker(name="main-2")
    assert pick(MAIN, [job], situation_of(MAIN), RULES, now=1e9) is None
    assert pick(other, [job], situation_of(MAIN, other), RULES, now=0) is job


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("RTX-5060Ti-16GB", Gpu("blackwell", 16)),
        ("NVIDIA GeForce RTX 3090", Gpu("ampere", 24)),
        ("RTX-2080-8GB", Gpu("turing", 8)),
        ("rtx_4090", Gpu("ada", 24)),
        ("L40S-48GB", Gpu("ada", 48)),
        ("NVIDIA A100-SXM4-80GB", Gpu("ampere", 80)),
        ("H100-80GB", Gpu("hopper", 80)),
        ("NVIDIA H200", Gpu("hopper", 141)),
        ("B200", Gpu("blackwell", 180)),
        ("RTX-6000-Ada-Generation-48GB", Gpu("ada", 48)),
        ("cpu", Gpu()),
        ("", Gpu()),
    ],
)
def test_the_class_of_a_gpu_names_its_architecture_and_memory(name, gpu):
    assert read_gpu_class(name) == gpu


@given(st.text(string.printable))
def test_any_text_may_be_the_name_of_a_gpu_class(name):
    assert read_gpu_class(name).architecture in {None, *ARCHITECTURES}


# The order of one client's jobs


def test_a_higher_priority_is_first_and_equal_ones_keep_their_order():
    jobs = [a_job("low", priority=0), a_job("b", submitted_at=2), a_job("a", submitted_at=1)]
    jobs.append(a_job("high", submitted_at=3, priority=9))
    assert drained(jobs) == ["high", "a", "b", "low"]


def test_a_job_whose_deadline_is_near_is_before_one_of_the_same_priority():
    late = a_job("late", submitted_at=1, deadline=500.0, expected_s=100.0)
    assert drained([a_job("early"), late]) == ["late", "early"]


def test_a_job_of_the_lowest_priority_is_not_passed_for_ever():
    old = a_job("old", priority=0)
    urgent = [a_job(f"{i}", submitted_at=i * 60.0, priority=9) for i in range(1, 100)]
    passed = drained([old, *urgent]).index("old")
    assert passed == RULES.max_wait_s // 60 - 1  # those submitted before it was due


submitted = st.floats(0, 1e6)


@given(
    submitted,
    st.integers(0, 9),
    st.one_of(st.none(), st.floats(-1e6, 2e6)),
    st.floats(0, 1e4),
)
def test_a_job_is_due_between_its_submission_and_the_longest_wait(at, priority, deadline, seconds):
    job = a_job(submitted_at=at, priority=priority, deadline=deadline, expected_s=seconds)
    assert at <= due_at(job, RULES) <= at + RULES.max_wait_s


def test_a_priority_outside_0_to_9_is_refused():
    for priority in (-1, 10):
        with pytest.raises(ValueError, match="priority"):
            a_job(priority=priority)


# Fairness between clients


def drained(jobs: list[QueuedJob], accounts: Accounts | None = None) -> list[str]:
    """Return the ids of all jobs in the order in which one main worker gets them."""
    waiting, order, account = list(jobs), [], accounts or Accounts()
    while waiting:
        situation = situation_of(MAIN, queue_length=len(waiting), accounts=account)
        job = pick(MAIN, waiting, situation, RULES, now=1e9)
        assert job is not None
        waiting.remove(job)
        order.append(job.job_id)
        account = charge(job, account)
    return order


def test_a_thousand_jobs_of_one_client_do_not_starve_two_of_another():
    many = [a_job(f"a{i}", "a", submitted_at=i) for i in range(1000)]
    two = [a_job(f"b{i}", "b", submitted_at=5000.0) for i in range(2)]
    account = Accounts()
    for job in many[:500]:
        account = charge(job, account)
    order = drained(many[500:510] + two, account)
    assert max(order.index("b0"), order.index("b1")) <= 3


def test_a_priority_of_one_client_does_not_starve_another_client():
    shouting = [a_job(f"a{i}", "a", priority=9) for i in range(20)]
    order = drained([*shouting, a_job("b", "b", priority=0)])
    assert order.index("b") <= 1


def test_a_client_that_was_idle_has_saved_up_no_service():
    account = Accounts(clock=1000.0, clients={"busy": Account(used=1060.0), "idle": Account()})
    jobs = [a_job(f"{client}{i}", client) for client in ("busy", "idle") for i in range(20)]
    order = drained(jobs, account)
    assert sum(name.startswith("busy") for name in order[:20]) >= 9


clients = st.dictionaries(st.sampled_from("abcd"), st.floats(0.25, 8), min_size=2)


@given(clients, st.data())
def test_service_follows_the_weights_whatever_the_jobs_take(weights, data):
    """The bound of start-time fair queueing, while all clients have jobs."""
    seconds = {
        client: data.draw(st.lists(st.floats(1, 600), min_size=12, max_size=12))
        for client in weights
    }
    waiting = [
        a_job(f"{client}{i:02d}", client, submitted_at=i, expected_s=took)
        for client, all_took in seconds.items()
        for i, took in enumerate(all_took)
    ]
    accounts = Accounts(0.0, {client: Account(weight) for client, weight in weights.items()})
    served = dict.fromkeys(weights, 0.0)
    left = {client: len(all_took) for client, all_took in seconds.items()}
    while all(left.values()):
        situation = situation_of(MAIN, accounts=accounts)
        job = pick(MAIN, waiting, situation, RULES, now=1e9)
        assert job is not None
        waiting.remove(job)
        left[job.client] -= 1
        accounts = charge(job, accounts)
        served[job.client] += job.expected_s / weights[job.client]
        spread = {client: max(seconds[client]) / weights[client] for client in weights}
        for one in weights:
            for other in weights:
                bound = spread[one] + spread[other]
                assert served[one] - served[other] <= bound * (1 + 1e-9)


jobs_of_all_kinds = st.lists(
    st.builds(
        a_job,
        client=st.sampled_from("abc"),
        submitted_at=st.floats(0, 1000),
        priority=st.integers(0, 9),
        deadline=st.one_of(st.none(), st.floats(0, 5000)),
        expected_s=st.floats(0, 600),
        requires=st.builds(
            Requirements,
            st.sampled_from([0.0, 8.0, 24.0]),
            st.frozensets(st.sampled_from(["ampere", "blackwell"])),
        ),
        failed_on=st.frozensets(st.sampled_from([worker.worker_id for worker in ALL])),
    ),
    max_size=20,
)
some_workers = st.lists(
    st.builds(
        a_worker,
        st.sampled_from(Tier),
        st.sampled_from(["RTX-2070-8GB", "RTX-3090-24GB", "RTX-5060Ti-16GB"]),
        free=st.integers(0, 3),
    ),
    max_size=6,
    unique_by=lambda worker: worker.worker_id,
)


@given(jobs_of_all_kinds, some_workers)
def test_no_job_starves_that_some_free_worker_can_run(jobs, workers):
    jobs = [QueuedJob(f"{i}", *_facts(job)) for i, job in enumerate(jobs)]
    now = 1000.0 + max(rule.min_age_s for rule in RULES.overflow)
    found = assign(jobs, workers, situation_of(*workers, queue_length=len(jobs)), RULES, now)
    given_out = {one.job.job_id for one in found}
    assert len(given_out) == len(found)  # none twice
    taken = [one.worker.worker_id for one in found]
    for worker in workers:
        assert taken.count(worker.worker_id) <= worker.free
        if taken.count(worker.worker_id) == worker.free:
            continue
        for job in jobs:
            is_able = job.requires.are_met_by(worker.gpu)
            assert job.job_id in given_out or not is_able or worker.worker_id in job.failed_on, (
                "a free worker was left without a job that it can run"
            )
    for one in found:
        assert one.worker.worker_id not in one.job.failed_on
        assert one.job.requires.are_met_by(one.worker.gpu)


def _facts(job: QueuedJob):
    return (
        job.client,
        job.submitted_at,
        job.priority,
        job.deadline,
        job.expected_s,
        job.requires,
        job.failed_on,
    )


def test_two_calls_with_the_same_facts_pick_the_same_job():
    jobs = [a_job(f"{client}{i}", client) for i in range(5) for client in "ab"]
    situation = situation_of(MAIN)
    first = pick(MAIN, jobs, situation, RULES, now=0)
    assert pick(MAIN, list(reversed(jobs)), situation, RULES, now=0) == first


@given(jobs_of_all_kinds)
def test_the_ranking_has_what_the_worker_may_have_in_the_order_of_picking(jobs):
    waiting = [QueuedJob(f"{i}", *_facts(job)) for i, job in enumerate(jobs)]
    ranked = rank(MAIN, waiting, situation_of(MAIN), RULES, now=2000.0)
    while (job := pick(MAIN, waiting, situation_of(MAIN), RULES, now=2000.0)) is not None:
        assert job == ranked.pop(0)
        waiting.remove(job)
    assert ranked == []


def test_other_overflow_rules_are_configuration():
    rules = RoutingRules(overflow=(OverflowRule(0.0, 1),) * 3)
    assert pick(BUFFER, [a_job()], situation_of(*ALL), rules, now=0) is not None


# The table of examples in the documentation

EXAMPLE = re.compile(
    r"^\| (\w+) \| ([\w, ]+) \| (\d+) s \| (\d+) \| (yes|no) \| .+\|$", re.MULTILINE
)


def test_the_examples_of_the_page_are_what_happens():
    rows = EXAMPLE.findall(PAGE.read_text())
    assert len(rows) >= 8
    for name, live, age, length, answer in rows:
        workers = [a_worker(Tier(tier)) for tier in live.split(", ")]
        refused = may_have(
            a_worker(Tier(name)), a_job(), *workers, now=float(age), queue_length=int(length)
        )
        assert (refused is None) == (answer == "yes"), (name, live, age, length)
