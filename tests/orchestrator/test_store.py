"""What clients do with the store, how jobs end, and what is kept, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.store.errors import (
    AttemptGone,
    JobConflict,
    JobNotFound,
    QueueFull,
    WrongState,
)
from orchestrator.store.leases import FailureKind
from orchestrator.store.states import JobState
from orchestrator.store.values import (
    AttemptName,
    JobFilter,
    Progress,
    Rules,
)
from tests.orchestrator.databases import Bench, new_job, open_bench, worker
from tests.orchestrator.steps import CRASHED, DONE, claimed, name_of

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
    assert bench.store.count_queued(9) == 2


def test_a_job_keeps_its_newest_events(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    name = name_of(claimed(bench))
    for number in range(250):
        bench.store.progress(name, Progress(0.5, f"phase {number}"))
    _, events = bench.store.follow("job-1", 0)
    assert [event.number for event in events] == list(range(53, 253))
