"""How the store leases jobs to workers and takes them back, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.routing import Requirements
from orchestrator.store.errors import (
    AttemptGone,
    WorkerDrained,
)
from orchestrator.store.leases import FailureKind
from orchestrator.store.states import AttemptEnd, JobState
from orchestrator.store.store import JobStore
from orchestrator.store.values import (
    Beat,
    JobFilter,
    ListedJob,
    Progress,
    Rules,
    WorkerFacts,
)
from tests.orchestrator.databases import Bench, new_job, open_bench, worker
from tests.orchestrator.steps import CRASHED, DONE, claimed, heartbeat, name_of

# Claiming ------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_and_then_the_oldest(bench: Bench) -> None:
    for job_id, priority in (("a", 5), ("b", 9), ("c", 5), ("d", 9)):
        bench.store.submit(new_job(job_id, priority=priority))
    assert [claimed(bench, f"w{n}").job.id for n in range(4)] == ["b", "d", "a", "c"]


def test_many_workers_never_claim_the_same_job(bench: Bench) -> None:
    for number in range(20):
        bench.store.submit(new_job(f"job-{number}"))
    start = threading.Barrier(8)

    def work(name: str) -> list[str]:
        start.wait()
        leases = [bench.store.claim(worker(name)) for _ in range(4)]
        return [lease.job.id for lease in leases if lease is not None]

    with ThreadPoolExecutor(8) as pool:
        found = [job for jobs in pool.map(work, map(str, range(8))) for job in jobs]
    assert sorted(found) == sorted(f"job-{number}" for number in range(20))


def test_a_client_with_many_jobs_does_not_hide_those_of_another(bench: Bench) -> None:
    for number in range(40):
        bench.store.submit(new_job(f"many-{number:02}", client="many", priority=9))
    bench.store.submit(new_job("few-1", client="few"))
    bench.store.submit(new_job("few-2", client="few"))
    claimed_by = [claimed(bench).job.client for _ in range(4)]
    assert sorted(claimed_by) == ["few", "few", "many", "many"]


def test_a_client_with_twice_the_weight_gets_twice_the_service(bench: Bench) -> None:
    bench.store.add_key("client", "heavy", weight=2.0)
    for number in range(9):
        for client in ("heavy", "light"):
            bench.store.submit(new_job(f"{client}-{number}", client=client))
    claimed_by = [claimed(bench).job.client for _ in range(9)]
    assert (claimed_by.count("heavy"), claimed_by.count("light")) == (6, 3)


def test_a_job_runs_only_on_cards_that_meet_its_requirements(bench: Bench) -> None:
    needs = Requirements(12.0, frozenset({"ada", "blackwell"}))
    bench.store.submit(new_job("job-1", requires=needs))
    for gpu_class in ("RTX-3090-24GB", "RTX-4060-8GB", "cpu"):
        assert bench.store.claim(WorkerFacts("w1", "main", "salad", gpu_class)) is None
    lease = bench.store.claim(WorkerFacts("w1", "main", "salad", "RTX-4070-12GB"))
    assert lease is not None
    assert lease.job.requires == needs


def test_a_job_overflows_into_the_next_tier_with_time(database_url: str) -> None:
    bench = open_bench(database_url, Rules())
    bench.store.beat(heartbeat("cheap"))
    bench.store.submit(new_job("job-1"))
    assert bench.store.claim(worker("dear", "expensive")) is None
    bench.age(61.0)
    bench.store.beat(heartbeat("cheap"))
    assert bench.store.claim(worker("dear", "expensive")) is not None
    bench.store.close()


def test_a_drained_worker_claims_nothing_more(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    assert not bench.store.drain("w1")
    bench.store.beat(heartbeat("w1"))
    assert bench.store.drain("w1")
    assert bench.store.beat(heartbeat("w1")).is_drained
    with pytest.raises(WorkerDrained):
        bench.store.claim(worker("w1"))
    bench.store.drain("w1", is_drained=False)
    assert claimed(bench).job.id == "job-1"


# Leases --------------------------------------------------------------------------------------


def test_silence_returns_a_job_and_a_late_attempt_changes_nothing(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    late = name_of(claimed(bench))
    bench.age(20.0)  # of 30
    assert bench.store.expire() == ()
    bench.age(11.0)
    (lost,) = bench.store.expire()
    assert (lost.job_id, lost.worker_id, lost.number) == ("job-1", "w1", 1)
    job = bench.store.get("job-1")
    assert (job.state, job.failures, job.interruptions) == (JobState.QUEUED, 0, 1)
    for _ in range(2):  # before another worker has it, and afterwards
        with pytest.raises(AttemptGone):
            bench.store.progress(late, Progress(0.9, "encoding"))
        with pytest.raises(AttemptGone):
            bench.store.finish(late, DONE)
        with pytest.raises(AttemptGone):
            bench.store.fail(late, CRASHED, FailureKind.INPUT)
        bench.store.claim(worker("w2"))
    assert bench.store.get("job-1").worker_id == "w2"
    assert [attempt.ending for attempt in bench.store.attempts("job-1")] == [
        AttemptEnd.INTERRUPTED,
        None,
    ]


def test_heartbeats_renew_the_leases_of_the_jobs_that_they_list(bench: Bench) -> None:
    for number in range(2):
        bench.store.submit(new_job(f"job-{number}"))
    for _ in range(2):
        claimed(bench)
    for _ in range(3):
        bench.age(20.0)
        bench.store.beat(heartbeat("w1", ListedJob("job-0", 1), ListedJob("job-1")))
    assert bench.store.expire() == ()
    assert len(bench.store.page(JobFilter(worker_id="w1"), 9).jobs) == 2


def test_a_job_that_two_heartbeats_do_not_list_returns_to_the_queue(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    claimed(bench)
    for _ in range(3):  # the claim's answer may still be on its way
        bench.store.beat(heartbeat("w1"))
    bench.age(20.0)
    bench.store.beat(heartbeat("w1"))
    bench.store.beat(heartbeat("w1", ListedJob("job-1", 1)))
    bench.store.beat(heartbeat("w1"))
    assert bench.store.get("job-1").state is JobState.RUNNING
    bench.store.beat(heartbeat("w1", ListedJob("job-1", 7)))  # that is another attempt
    assert bench.store.get("job-1").state is JobState.QUEUED


def test_a_heartbeat_without_a_list_goes_by_its_current_job(bench: Bench) -> None:
    for number in range(2):
        bench.store.submit(new_job(f"job-{number}"))
    for _ in range(2):
        claimed(bench)
    bench.age(20.0)
    for _ in range(2):
        bench.store.beat(Beat(worker("w1"), is_busy=True, current_job_id="job-1"))
    assert bench.store.get("job-0").state is JobState.QUEUED
    assert bench.store.get("job-1").state is JobState.RUNNING
    for _ in range(2):
        bench.store.beat(Beat(worker("w1"), is_busy=True))  # a buffer worker says no more
    assert bench.store.get("job-1").state is JobState.RUNNING
    for _ in range(2):
        bench.store.beat(Beat(worker("w1"), is_busy=False))
    assert bench.store.get("job-1").state is JobState.QUEUED


def test_a_worker_learns_from_its_heartbeat_what_it_has_lost(bench: Bench) -> None:
    for number in range(3):
        bench.store.submit(new_job(f"job-{number}"))
    held = [claimed(bench) for _ in range(3)]
    bench.store.cancel("job-0")
    bench.store.finish(name_of(held[1]), DONE)
    listed = [ListedJob(f"job-{number}", 1) for number in range(3)]
    answer = bench.store.beat(heartbeat("w1", *listed, ListedJob("never heard of", 1)))
    assert answer.cancel == ("job-0",)  # a job whose report was accepted is not to be stopped


def test_no_attempt_holds_a_job_for_ever(bench: Bench) -> None:
    rules = replace(bench.store.rules, max_attempt_s=50.0)
    store = JobStore(bench.database, rules)
    store.submit(new_job("job-1"))
    lease = store.claim(worker("w1"))
    assert lease is not None
    beat = Beat(worker("w1"), is_busy=True, jobs=(ListedJob("job-1", 1),))
    for _ in range(2):
        bench.age(20.0)
        store.beat(beat)
        assert not store.expire()
    bench.age(11.0)
    assert len(store.expire()) == 1
    assert "longer than one attempt may take" in (store.attempts("job-1")[0].error or "")
    assert store.beat(beat).cancel == ("job-1",)


def test_a_goodbye_returns_the_jobs_at_once(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    claimed(bench)
    assert bench.store.goodbye("w1", "the lease of the machine ends") == 1
    assert bench.store.get("job-1").state is JobState.QUEUED
    (gone,) = bench.store.workers()
    assert (gone.is_online, gone.left_because) == (False, "the lease of the machine ends")


def test_a_job_that_is_interrupted_again_and_again_ends(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    for number in range(5):
        claimed(bench, f"w{number}")
        bench.store.goodbye(f"w{number}", "out of memory")
    job = bench.store.get("job-1")
    assert (job.state, job.failures) == (JobState.DEAD, 0)
    assert "5 times" in (job.error or "")
