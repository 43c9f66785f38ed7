"""What is learnt from reports: speeds of GPU classes, and lengths of jobs; and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.gpus import read_gpu_class
from orchestrator.routing import RoutingRules
from orchestrator.scaling import Decision, Offer
from orchestrator.scaling.learnt import UNKNOWN_FRAMES, Learnt
from orchestrator.store.leases import FailureKind
from orchestrator.store.values import Completion, Failure, Progress, WorkerFacts
from tests.orchestrator.databases import RULES, Bench, new_job, open_bench
from tests.orchestrator.steps import claimed, name_of

CLASS, DEAR, SLOW = "RTX-3090-24GB", "RTX-4090-24GB", "RTX-3060-12GB"


def finish(bench: Bench, job_id: str, client: str, *, seconds: float, frames: int) -> None:
    """Let a job of a client take so many seconds on a worker of its own."""
    bench.store.submit(new_job(job_id, client=client, priority=9))
    lease = claimed(bench, f"worker of {job_id}")
    assert lease.job.id == job_id
    bench.age(seconds)
    done = Completion("https://files.example/v.mp4", {"total_time": 1.0}, {"frames": frames})
    bench.store.finish(name_of(lease), done)


def test_a_speed_follows_the_reports_and_begins_with_the_configured_one() -> None:
    assert Learnt().frames_per_s(prior=20.0) == 20.0
    assert Learnt(50 * 1200, 1200).frames_per_s(prior=20.0) == pytest.approx(50, rel=0.06)


def test_finished_jobs_teach_the_speed_of_their_class(bench: Bench) -> None:
    for number in range(20):
        finish(bench, f"job-{number}", "a", seconds=600, frames=30_000)
    (speed,) = bench.store.fleet_facts(60.0).speeds.items()
    assert speed[0] == CLASS
    assert speed[1].mean(0.0) == pytest.approx(50.0, rel=0.01)
    assert speed[1].frames_per_s(prior=20.0) == pytest.approx(50.0, rel=0.1)


def test_a_worker_that_runs_two_jobs_at_once_is_twice_as_fast_as_each_of_them(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.store.submit(new_job(name))
    leases = [claimed(bench) for _ in range(2)]
    bench.age(600)
    done = Completion("https://files.example/v.mp4", {"total_time": 1.0}, {"frames": 15_000})
    bench.store.finish(name_of(leases[0]), done)
    assert bench.store.fleet_facts(60.0).speeds[CLASS].mean(0.0) == pytest.approx(50.0, rel=0.01)


@pytest.mark.parametrize("frames", [0, -5, True, "many", 10**12, None])
def test_nonsense_teaches_no_speed(bench: Bench, frames: object) -> None:
    bench.store.submit(new_job("job"))
    lease = claimed(bench)
    bench.age(60)
    done = Completion("https://files.example/v.mp4", {"total_time": 1.0}, {"frames": frames})  # type: ignore[dict-item]
    bench.store.finish(name_of(lease), done)
    assert bench.store.fleet_facts(60.0).speeds == {}


def test_the_frames_of_waiting_jobs_are_those_of_comparable_ones(bench: Bench) -> None:
    bench.store.submit(new_job("unknown", client="z"))
    assert sum(item.frames for item in bench.store.fleet_facts(60.0).work) == UNKNOWN_FRAMES
    bench.store.cancel("unknown")
    for number in range(5):
        finish(bench, f"a{number}", "a", seconds=10, frames=100)
        finish(bench, f"b{number}", "b", seconds=10, frames=500)
    for client, frames in (("a", 100), ("b", 500), ("new", 300)):
        bench.store.submit(new_job(f"of {client}", client=client))
        (work,) = bench.store.fleet_facts(60.0).work
        assert work.frames == pytest.approx(frames, rel=0.01)
        assert work.jobs == 1
        bench.store.cancel(f"of {client}")


def test_the_frames_that_a_worker_has_said_stay_known_when_the_job_returns(bench: Bench) -> None:
    bench.store.submit(new_job("job"))
    lease = claimed(bench)
    counts = {"frames_done": 100, "frames_total": 1000}
    bench.store.progress(name_of(lease), Progress(0.25, "inferring", counts))
    (work,) = bench.store.fleet_facts(60.0).work
    assert work.frames == pytest.approx(750)
    bench.store.fail(name_of(lease), Failure("It was stopped."), FailureKind.INTERRUPTION)
    (work,) = bench.store.fleet_facts(60.0).work
    assert work.frames == pytest.approx(1000)


def test_jobs_that_are_wanted_in_the_same_minute_are_one_piece_of_work(bench: Bench) -> None:
    now = bench.store.fleet_facts(60.0).now
    for number, deadline in enumerate((now + 7210, now + 7220, now - 50, now + 10**8, None)):
        bench.store.submit(new_job(f"job-{number}", deadline=deadline))
    work = bench.store.fleet_facts(600.0).work
    assert [item.jobs for item in work] == [1, 1, 2, 1]
    late, usual, soon, far = (item.finish_by - now for item in work)
    assert late == pytest.approx(0, abs=60)  # it is wanted now, not in the past
    assert usual == pytest.approx(660, abs=60)
    assert soon == pytest.approx(7210, abs=1)
    assert far == pytest.approx(24 * 3600, abs=60)


def test_a_client_with_long_jobs_gets_fewer_of_them(bench: Bench) -> None:
    """Fairness is in seconds: who has jobs of a tenth of the length gets ten times as many."""
    for number in range(5):
        finish(bench, f"l{number}", "long", seconds=100, frames=1000)
        finish(bench, f"s{number}", "short", seconds=10, frames=100)
    for number in range(40):
        for client in ("long", "short"):
            bench.store.submit(new_job(f"{client}-{number}", client=client))
    clients = [claimed(bench, f"w{number}").job.client for number in range(40)]
    assert 2 <= clients.count("long") <= 6


@pytest.fixture
def priced(database_url: str) -> Iterator[Bench]:
    """A store in which main and transient workers have prices."""
    offers = tuple(
        Offer(provider, name, read_gpu_class(name), usd, 25.0, 60.0, 10)
        for provider, name, usd in (("salad", SLOW, 0.04), ("vast", DEAR, 0.30))
    )
    opened = open_bench(database_url, replace(RULES, routing=RoutingRules(), offers=offers))
    yield opened
    opened.store.close()


def test_prices_and_learnt_speeds_reorder_the_tiers(priced: Bench) -> None:
    """Main workers are preferred, until those of another tier make a minute for less money."""
    bench = priced
    main = WorkerFacts("m", "main", "salad", SLOW)
    transient = WorkerFacts("t", "transient", "vast", DEAR)
    for facts in (main, transient):
        bench.store.register(facts)
    bench.store.submit(new_job("first"))
    assert bench.store.claim(transient) is None  # it waits for the cheaper worker
    assert bench.store.claim(main) is not None
    for number in range(15):  # the class of the dear worker turns out to be 20 times as fast
        bench.store.submit(new_job(f"job-{number}"))
        fast = WorkerFacts(f"f{number}", "buffer", None, DEAR)
        bench.age(700.0)
        lease = bench.store.claim(fast)
        assert lease is not None
        bench.age(60.0)
        done = Completion("https://files.example/v.mp4", {"total_time": 1.0}, {"frames": 30_000})
        bench.store.finish(name_of(lease), done)
        bench.store.goodbye(fast.id, "it is done")
    for facts in (main, transient):
        bench.store.register(facts)
    bench.store.submit(new_job("last"))
    assert bench.store.claim(main) is None
    taken = bench.store.claim(transient)
    assert taken is not None
    assert taken.job.id == "last"


def test_a_class_is_forgotten_that_has_not_reported_for_long(bench: Bench) -> None:
    finish(bench, "job", "a", seconds=10, frames=100)
    bench.age(bench.store.rules.keep_ended_s + 1)
    bench.store.forget()
    assert bench.store.fleet_facts(60.0).speeds == {}


def test_decisions_have_a_lifetime(bench: Bench) -> None:
    bench.store.add_decisions([Decision("salad", CLASS, 0, 1, "Because.")])
    bench.age(bench.store.rules.keep_decisions_s + 1)
    bench.store.add_decisions([Decision("salad", CLASS, 1, 2, "Because.")])
    bench.store.forget()
    assert [one.want for one in bench.store.decisions()] == [2]
