"""The scaling loop over a store, with providers that do, refuse, hang and block."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from orchestrator.gpus import read_gpu_class
from orchestrator.scaling import Offer, ScalingRules
from orchestrator.service.fleet_file import FleetPlan
from orchestrator.service.scaling_loop import LEASE_S, SCALING, ScalingLoop
from orchestrator.store.store import JobStore
from orchestrator.store.values import Beat, ListedJob, WorkerFacts
from tests.orchestrator.databases import RULES as STORE_RULES
from tests.orchestrator.databases import Bench, SqliteFiles, new_job, open_bench
from tests.orchestrator.fleet_desk import FleetDesk
from tests.orchestrator.running import running_service
from tests.orchestrator.steps import DONE, name_of

CLASS = "RTX-3090-24GB"
DESK = "tests.orchestrator.fleet_desk:FleetDesk"
RULES = ScalingRules(
    budget_usd_per_hour=10.0, target_wait_s=60.0, cooldown_up_s=0.0, cooldown_down_s=0.0
)


def an_offer(provider: str = "salad", **facts: Any) -> Offer:
    known = {"usd_per_hour": 0.09, "frames_per_s": 25.0, "startup_s": 10.0, "max_workers": 3}
    return Offer(provider, CLASS, read_gpu_class(CLASS), **(known | facts))


def a_plan(**changes: Any) -> FleetPlan:
    plan = FleetPlan((an_offer(),), RULES, fleets={"salad": (DESK, {})})
    return replace(plan, **changes)


def a_loop(bench: Bench, plan: FleetPlan | None = None, holder: str = "one") -> ScalingLoop:
    return ScalingLoop(bench.store, plan or a_plan(), holder, call_s=0.2)


@pytest.fixture(autouse=True)
def desks() -> Iterator[list[FleetDesk]]:
    """The providers that the loops of a test have made, in order."""
    FleetDesk.made.clear()
    yield FleetDesk.made
    for desk in FleetDesk.made:
        desk.unblock.set()


def heard(store: JobStore, *worker_ids: str, jobs: tuple[ListedJob, ...] = ()) -> None:
    """Let workers send a heartbeat."""
    for worker_id in worker_ids:
        facts = WorkerFacts(worker_id, "main", "salad", CLASS)
        store.beat(Beat(facts, is_busy=bool(jobs), jobs=jobs))


def submit(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.store.submit(new_job(f"job-{number}"))


async def test_waiting_jobs_rent_workers_and_the_decision_is_kept_with_its_reason(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 40)
    loop = a_loop(bench)
    assert await loop.step()
    (desk,) = desks
    assert len(desk.machines) == 3  # the offer's limit
    (decision,) = bench.store.decisions()
    assert (decision.provider, decision.gpu_class) == ("salad", CLASS)
    assert (decision.have, decision.want, decision.error) == (0, 3, None)
    assert decision.reason.startswith("Start 3 workers in addition to 0.")
    assert "its limit of 3 workers" in decision.reason
    await loop.step()  # nothing new has been decided
    assert len(bench.store.decisions()) == 1
    status = bench.store.loop_status(SCALING)
    assert status is not None
    assert status.error is None
    assert status.facts is not None
    assert status.facts["jobs"] == 40
    assert status.facts["usd_per_hour"] == pytest.approx(0.27)


async def test_one_process_at_a_time_decides_and_another_takes_over(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 1)
    first, second = a_loop(bench), a_loop(bench, holder="two")
    assert await first.step()
    assert not await second.step()
    assert len(desks) == 1  # the second has not even made a provider
    bench.age(LEASE_S + 1)  # the first process has died
    assert await second.step()
    assert not await first.step()
    assert desks[0].is_closed
    stopping = asyncio.Event()
    stopping.set()
    await second.run(stopping)
    assert await first.step()  # at once, because the second has let go


async def test_workers_are_asked_to_claim_nothing_more_and_end_when_they_hold_no_job(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 40)
    loop = a_loop(bench)
    await loop.step()
    (desk,) = desks
    names = desk.come_up()
    heard(bench.store, *names)
    held = bench.store.claim(WorkerFacts(names[0], "main", "salad", CLASS))
    assert held is not None
    for number in range(40):
        if f"job-{number}" != held.job.id:
            bench.store.cancel(f"job-{number}")
    await loop.step()
    await loop.step()
    assert sorted(desk.ended) == sorted(names[1:])  # idle
    bench.store.cancel(held.job.id)
    await loop.step()
    drained = {one.id for one in bench.store.workers() if one.is_drained}
    assert drained == set(names)
    await loop.step()
    assert sorted(desk.ended) == sorted(names)
    assert bench.store.decisions()[0].want == 0


async def test_a_busy_worker_that_has_to_go_finishes_its_job(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 40)
    loop = a_loop(bench)
    await loop.step()
    (desk,) = desks
    names = desk.come_up()
    heard(bench.store, *names)
    leases = [bench.store.claim(WorkerFacts(name, "main", "salad", CLASS)) for name in names]
    bench.store.drain(names[0])  # the operator asks for it
    await loop.step()
    assert desk.ended == []
    assert len(desk.machines) == 3  # no fourth: it would exceed the offer's limit
    held = leases[0]
    assert held is not None
    bench.store.finish(name_of(held), DONE)
    await loop.step()
    assert desk.ended == [names[0]]
    await loop.step()
    assert len(desk.machines) == 3  # replaced


async def test_a_worker_that_never_finishes_is_ended_after_its_grace(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 1)
    loop = a_loop(bench, a_plan(drain_grace_s=20.0))
    await loop.step()
    (name,) = desks[0].come_up()
    heard(bench.store, name)
    held = bench.store.claim(WorkerFacts(name, "main", "salad", CLASS))
    assert held is not None
    bench.store.drain(name)
    await loop.step()
    assert desks[0].ended == []
    loop._leaving = {key: since - 20.0 for key, since in loop._leaving.items()}
    await loop.step()
    assert desks[0].ended == [name]


@pytest.mark.parametrize(
    ("fault", "refuses", "sentence"),
    [
        ("raise", "want", "salad: The account has no credit left."),
        ("bug", "want", "salad failed unexpectedly (ZeroDivisionError)"),
        ("hang", "want", "salad did not answer within 0.2 s."),
        ("raise", "have", "salad: The account has no credit left."),
        ("hang", "have", "salad did not answer within 0.2 s."),
    ],
)
async def test_a_provider_that_fails_is_shown_and_holds_up_no_other(
    bench: Bench, desks: list[FleetDesk], fault: str, refuses: str, sentence: str
) -> None:
    submit(bench, 40)
    fleets = {"salad": (DESK, {"fault": fault, "refuses": refuses}), "vast": (DESK, {})}
    plan = a_plan(offers=(an_offer(), an_offer("vast", usd_per_hour=0.2)), fleets=fleets)
    await a_loop(bench, plan).step()
    assert desks[0].machines == {}
    assert len(desks[1].machines) == 3
    status = bench.store.loop_status(SCALING)
    assert status is not None
    assert sentence in (status.error or "")
    errors = {one.provider: one.error for one in bench.store.decisions()}
    assert errors["vast"] is None
    assert (sentence in (errors["salad"] or "")) if refuses == "want" else "salad" not in errors


async def test_a_database_that_does_not_answer_ends_no_loop(bench: Bench) -> None:
    loop = a_loop(bench)
    with bench.database.write() as tx:
        tx.execute(sa.text("ALTER TABLE loops RENAME TO loops_elsewhere"))
    assert await loop.step()
    with bench.database.write() as tx:
        tx.execute(sa.text("ALTER TABLE loops_elsewhere RENAME TO loops"))
    assert await loop.step()
    assert bench.store.loop_status(SCALING) is not None


async def test_workers_that_nobody_rents_count_and_cost_nothing(
    bench: Bench, desks: list[FleetDesk]
) -> None:
    submit(bench, 2)
    for name in ("own-1", "own-2"):
        bench.store.beat(Beat(WorkerFacts(name, "buffer", "local", "RTX-4090"), is_busy=False))
    await a_loop(bench).step()
    assert desks[0].machines == {}
    assert bench.store.decisions() == ()


def test_a_provider_that_blocks_delays_no_claim(
    sqlite_files: SqliteFiles, tmp_path: Path, desks: list[FleetDesk]
) -> None:
    opened = open_bench(sqlite_files.new(tmp_path), STORE_RULES)
    plan = a_plan(fleets={"salad": (DESK, {"fault": "block"})}, interval_s=0.05)
    with running_service(opened, plan) as service:
        for number in range(10):
            service.submit(f"job-{number}")
        assert desks[-1].called.wait(20)
        claimed = [service.claim(f"w{number}") for number in range(10)]
        assert len({job["musetalk_job_id"] for job in claimed if job}) == 10
        shown = service.admin.get("/v1/scaling").json()
        assert shown["is_on"]
        assert shown["decisions"][0]["reason"].startswith("Start ")
        assert service.nobody.get("/v1/scaling").status_code == 401
        desks[-1].unblock.set()
