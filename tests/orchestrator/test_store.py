"""The job store, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.routing import Requirements
from orchestrator.store.errors import (
    AttemptGone,
    JobConflict,
    JobNotFound,
    QueueFull,
    WorkerDrained,
    WrongState,
)
from orchestrator.store.leases import FailureKind
from orchestrator.store.states import AttemptEnd, JobState
from orchestrator.store.values import (
    AttemptName,
    Beat,
    Completion,
    Failure,
    JobFilter,
    Lease,
    ListedJob,
    Progress,
    Rules,
    WorkerFacts,
)
from tests.orchestrator.databases import Bench, new_job, open_bench, worker

DONE = Completion("https://files.example/job.mp4", {"total_time": 1.5})
CRASHED = Failure("The GPU fell over.", {"code": "stage_failed"})


def claimed(bench: Bench, name: str = "w1") -> Lease:
    lease = bench.store.claim(worker(name))
    assert lease is not None
    return lease


def name_of(lease: Lease) -> AttemptName:
    return AttemptName(lease.job.id, lease.job.worker_id, lease.attempt)


def heartbeat(name: str, *jobs: ListedJob) -> Beat:
    return Beat(worker(name), is_busy=bool(jobs), jobs=jobs)


# Submitting ----------------------------------------------------------------------------------


def test_a_job_passes_through_its_states(bench: Bench) -> None:
    job, is_new = bench.store.submit(new_job("job-1", metadata={"order": 7}))
    assert (job.state, is_new) == (JobState.QUEUED, True)
    lease = claimed(bench)
    assert bench.store.get("job-1").state is JobState.RUNNING
    bench.store.progress(name_of(lease), Progress(0.5, "inferring", {"frames_done": 5}))
    bench.store.progress(name_of(lease), Progress(0.6, "inferring", {"frames_done": 6}))
    assert bench.store.finish(name_of(lease), DONE)
    job = bench.store.get("job-1")
    assert (job.state, job.output_url, job.progress) == (JobState.SUCCEEDED, DONE.output_url, 1.0)
    assert (job.metrics, job.metadata) == (DONE.metrics, {"order": 7})
    _, events = bench.store.follow("job-1", 0)
    assert [event.kind for event in events] == ["submitted", "claimed", "phase", "succeeded"]
    assert [event.number for event in bench.store.follow("job-1", 2)[1]] == [3, 4]


def test_the_same_job_joins_although_its_addresses_were_signed_again(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    again = new_job("job-1", video_url="https://media.example/v.mp4?signature=two")
    job, is_new = bench.store.submit(again)
    assert not is_new
    assert job.video_url.endswith("two")
    assert claimed(bench).job.video_url.endswith("two")
    assert bench.store.claim(worker("w2")) is None


def test_another_content_under_a_known_id_is_refused(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    with pytest.raises(JobConflict):
        bench.store.submit(new_job("job-1", video_url="https://media.example/other.mp4"))
    with pytest.raises(JobConflict):
        bench.store.submit(new_job("job-1", client="somebody else"))


def test_an_idempotency_key_leads_to_its_job(bench: Bench) -> None:
    first, _ = bench.store.submit(new_job("job-1", idempotency_key="k"))
    second, is_new = bench.store.submit(new_job("job-2", idempotency_key="k"))
    assert (second.id, is_new) == (first.id, False)
    with pytest.raises(JobConflict):
        bench.store.submit(new_job("job-3", idempotency_key="k", resolution="1080p"))
    other, is_new = bench.store.submit(new_job("job-4", idempotency_key="k", client="another"))
    assert (other.id, is_new) == ("job-4", True)


def test_one_of_many_simultaneous_submissions_queues_the_job(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: bench.store.submit(new_job("job-1"))[1], range(16)))
    assert made.count(True) == 1


def test_a_full_queue_refuses_new_jobs(database_url: str) -> None:
    bench = open_bench(database_url, Rules(max_queued=2))
    for number in range(2):
        bench.store.submit(new_job(f"job-{number}"))
    with pytest.raises(QueueFull):
        bench.store.submit(new_job("job-2"))
    assert not bench.store.submit(new_job("job-1"))[1]  # joining needs no room
    bench.store.close()


def test_a_list_has_pages_and_filters(bench: Bench) -> None:
    for number in range(5):
        bench.store.submit(new_job(f"job-{number}", client="ab"[number % 2]))
    first = bench.store.page(JobFilter(), 3)
    second = bench.store.page(JobFilter(), 3, first.next_cursor)
    found = [job.id for job in first.jobs + second.jobs]
    assert found == [f"job-{number}" for number in (4, 3, 2, 1, 0)]
    assert second.next_cursor is None
    assert [job.id for job in bench.store.page(JobFilter(client="b"), 9).jobs] == ["job-3", "job-1"]
    claimed(bench)
    assert [job.id for job in bench.store.page(JobFilter(worker_id="w1"), 9).jobs] == ["job-0"]
    running = bench.store.page(JobFilter(states=(JobState.RUNNING,), client="b"), 9)
    assert running.jobs == ()


def test_a_client_finds_its_own_jobs_only(bench: Bench) -> None:
    bench.store.submit(new_job("job-1", client="a"))
    assert bench.store.get("job-1", "a").id == "job-1"
    for act in (bench.store.get, bench.store.cancel, bench.store.retry):
        with pytest.raises(JobNotFound):
            act("job-1", "b")


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
    bench.age(29.0)
    assert bench.store.expire() == 0
    bench.age(2.0)
    assert bench.store.expire() == 1
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
    assert bench.store.expire() == 0
    assert bench.store.count()[JobState.RUNNING] == 2


def test_a_job_that_two_heartbeats_do_not_list_returns_to_the_queue(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    claimed(bench)
    for _ in range(3):  # the claim's answer may still be on its way
        bench.store.beat(heartbeat("w1"))
    bench.age(5.0)
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
    bench.age(5.0)
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


# Ends ----------------------------------------------------------------------------------------


def test_a_final_report_may_be_sent_again(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    name = name_of(claimed(bench))
    assert bench.store.finish(name, DONE)
    assert not bench.store.finish(name, DONE)
    assert not bench.store.finish(AttemptName("job-1", "w1"), DONE)  # it need not know its number
    with pytest.raises(AttemptGone):
        bench.store.fail(name, CRASHED, FailureKind.PROCESSING)
    with pytest.raises(AttemptGone):
        bench.store.finish(AttemptName("job-1", "w2"), DONE)
    with pytest.raises(JobNotFound):
        bench.store.finish(AttemptName("job-2", "w1"), DONE)


def test_a_buffer_worker_reports_to_the_name_of_its_attempt(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    first = bench.store.claim(worker("b1", "buffer"))
    assert first is not None
    bench.store.goodbye("b1", "over")
    second = bench.store.claim(worker("b1", "buffer"))
    assert second is not None
    assert first.buffer_job_id != second.buffer_job_id
    with pytest.raises(AttemptGone):
        bench.store.finish(AttemptName(buffer_job_id=first.buffer_job_id), DONE)
    with pytest.raises(AttemptGone):
        bench.store.finish(AttemptName(buffer_job_id=second.buffer_job_id, number=1), DONE)
    assert bench.store.finish(AttemptName(buffer_job_id=second.buffer_job_id, number=2), DONE)


def test_an_input_at_fault_ends_a_job_at_once_and_for_good(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    bench.store.fail(name_of(claimed(bench)), CRASHED, FailureKind.INPUT)
    job = bench.store.get("job-1")
    assert (job.state, job.error, job.failure) == (JobState.FAILED, CRASHED.error, CRASHED.facts)
    assert bench.store.claim(worker("w2")) is None


def test_a_failed_job_goes_to_other_machines_until_it_is_dead(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    for number in range(3):
        lease = claimed(bench, f"w{number}")
        assert bench.store.fail(name_of(lease), CRASHED, FailureKind.PROCESSING)
        assert not bench.store.fail(name_of(lease), CRASHED, FailureKind.PROCESSING)
        assert bench.store.claim(worker(f"w{number}")) is None  # never back to the same machine
    assert bench.store.get("job-1").state is JobState.DEAD
    kept = bench.store.attempts("job-1")
    assert [(each.worker_id, each.error) for each in kept] == [
        (f"w{number}", CRASHED.error) for number in range(3)
    ]
    assert bench.store.claim(worker("w3")) is None


def test_an_interruption_that_a_worker_reports_is_no_failure(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    bench.store.fail(name_of(claimed(bench)), CRASHED, FailureKind.INTERRUPTION)
    job = bench.store.get("job-1")
    assert (job.state, job.failures) == (JobState.QUEUED, 0)
    assert claimed(bench).attempt == 2


def test_a_dead_job_is_put_back_by_one_call(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    for number in range(3):
        bench.store.fail(name_of(claimed(bench, f"w{number}")), CRASHED, FailureKind.PROCESSING)
    job = bench.store.retry("job-1")
    assert (job.state, job.run, job.failures, job.error) == (JobState.QUEUED, 2, 0, None)
    assert claimed(bench, "w0").attempt == 4  # numbers never fall
    with pytest.raises(WrongState):
        bench.store.retry("job-1")


def test_a_failed_job_that_is_submitted_again_is_done_again(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    bench.store.fail(name_of(claimed(bench)), CRASHED, FailureKind.INPUT)
    job, is_new = bench.store.submit(new_job("job-1", video_url="https://media.example/new.mp4"))
    assert (job.state, is_new, job.run) == (JobState.QUEUED, True, 2)
    assert claimed(bench).job.video_url.endswith("new.mp4")


def test_a_cancelled_job_is_no_longer_its_workers(bench: Bench) -> None:
    for number in range(2):
        bench.store.submit(new_job(f"job-{number}"))
    lease = claimed(bench)
    for job_id in ("job-0", "job-1"):
        assert bench.store.cancel(job_id).state is JobState.CANCELLED
        with pytest.raises(WrongState):
            bench.store.cancel(job_id)
    with pytest.raises(AttemptGone):
        bench.store.finish(name_of(lease), DONE)
    assert bench.store.claim(worker("w2")) is None


# Time ----------------------------------------------------------------------------------------


def test_ended_jobs_are_deleted_with_all_that_belongs_to_them(bench: Bench) -> None:
    bench.store.submit(new_job("old", idempotency_key="k"))
    bench.store.finish(name_of(claimed(bench)), DONE)
    bench.age(31 * 24 * 3600.0)
    bench.store.submit(new_job("new"))
    assert bench.store.forget() == 1
    with pytest.raises(JobNotFound):
        bench.store.get("old")
    assert bench.store.attempts("old") == ()
    assert bench.store.workers() == ()
    assert bench.store.submit(new_job("other", idempotency_key="k"))[0].id == "other"
    assert bench.store.count()[JobState.QUEUED] == 2


def test_a_job_keeps_its_newest_events(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    name = name_of(claimed(bench))
    for number in range(250):
        bench.store.progress(name, Progress(0.5, f"phase {number}"))
    _, events = bench.store.follow("job-1", 0)
    assert [event.number for event in events] == list(range(53, 253))
