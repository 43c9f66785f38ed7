"""The registry: one job per id, leases, joins, cancels, and survival of a restart."""

import sqlite3
from pathlib import Path

import pytest

from serve_app.answers import generate_body, job_body
from serve_app.jobs import JobConflict, JobRegistry, Origin, QueueFull, Ticket, Verdict
from serve_app.schemas import Failure, JobRequest, Phase, Progress, Success

DONE = Progress(Phase.COMPLETED, 1.0, 10, 10)
RUNNING = Progress(Phase.INFERRING, 0.5, 5, 10)
SUCCESS = Success("http://host/files/a.mp4", {"GENERATION_TIME_SEC": 1.0})


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock):
    registry = JobRegistry(tmp_path / "jobs.sqlite3", clock)
    yield registry
    registry.close()


def request(job_id: str = "a", video: str = "https://h/v.mp4") -> JobRequest:
    return JobRequest(musetalk_job_id=job_id, video_url=video, audio_url="https://h/a.wav")


def take(registry: JobRegistry, **kwargs):
    return registry.take(lease_s=20.0, max_attempts=3, **kwargs)


def test_jobs_start_in_the_order_they_came(registry, clock):
    for name in "bac":
        registry.submit(request(name), Origin.ASYNC, 10)
        clock.now += 1
    assert [take(registry).id for _ in range(3)] == ["b", "a", "c"]
    assert take(registry) is None


def test_the_same_content_joins_the_running_job(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    take(registry)
    job, is_new = registry.submit(request(), Origin.ASYNC, 10)
    assert (job.status, is_new) == ("running", False)


def test_the_same_content_gets_the_finished_result(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    registry.finish(take(registry), SUCCESS, DONE)
    job, is_new = registry.submit(request(), Origin.SYNC, 10)
    assert (job.outcome, is_new) == (SUCCESS, False)


def test_other_content_under_the_same_id_is_a_conflict(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    with pytest.raises(JobConflict):
        registry.submit(request(video="https://h/other.mp4"), Origin.ASYNC, 10)


def test_a_failed_job_that_comes_again_is_started_again(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    failure = Failure("media_error", "no", "no_face", "preprocessing", False, 422)
    registry.finish(take(registry), failure, RUNNING)
    assert registry.get("a").outcome == failure
    _, is_new = registry.submit(request(), Origin.ASYNC, 10)
    assert is_new
    assert take(registry).attempt == 1


def test_an_idempotency_key_gives_the_first_job_whatever_the_id(registry):
    ticket = Ticket(idempotency_key="k")
    registry.submit(request("a"), Origin.ASYNC, 10, ticket)
    job, is_new = registry.submit(request("b"), Origin.ASYNC, 10, ticket)
    assert (job.id, is_new) == ("a", False)
    with pytest.raises(JobConflict):
        registry.submit(request("c", video="https://h/other.mp4"), Origin.ASYNC, 10, ticket)


def test_the_queue_is_bounded(registry):
    registry.submit(request("a"), Origin.ASYNC, 1)
    with pytest.raises(QueueFull):
        registry.submit(request("b"), Origin.ASYNC, 1)


def test_a_silent_attempt_is_taken_over_and_may_no_longer_write(registry, clock):
    registry.submit(request(), Origin.ASYNC, 10)
    first = take(registry)
    clock.now += 21
    second = take(registry)
    assert (second.id, second.attempt) == ("a", 2)
    assert second.lost_attempt_id == first.attempt_id
    assert registry.beat(first, 20.0, RUNNING) is Verdict.LOST
    assert not registry.finish(first, SUCCESS, DONE)
    assert registry.finish(second, SUCCESS, DONE)


def test_a_beating_attempt_keeps_its_job(registry, clock):
    registry.submit(request(), Origin.ASYNC, 10)
    job = take(registry)
    for _ in range(5):
        clock.now += 15
        assert registry.beat(job, 20.0, RUNNING) is Verdict.GO_ON
        assert take(registry) is None
    assert registry.get("a").progress == RUNNING


def test_a_job_that_kills_its_worker_ends_after_the_allowed_starts(registry, clock):
    registry.submit(request(), Origin.ASYNC, 10)
    for _ in range(3):
        assert take(registry) is not None
        clock.now += 21
    assert take(registry) is None
    assert registry.sweep(max_attempts=3) == ["a"]
    assert registry.get("a").outcome.code == "abandoned"


def test_cancelling_a_waiting_job_ends_it_at_once(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    assert registry.cancel("a").status == "cancelled"
    assert take(registry) is None


def test_cancelling_a_running_job_ends_it_at_its_next_beat(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    job = take(registry)
    assert registry.cancel("a").status == "running"
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED


def test_a_job_nobody_waits_for_any_more_ends(registry, clock):
    registry.submit(request(), Origin.SYNC, 10)
    job = take(registry)
    clock.now += 4
    registry.want("a")
    clock.now += 4
    assert registry.beat(job, 20.0, RUNNING) is Verdict.GO_ON
    clock.now += 6
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED


def test_a_job_whose_client_comes_back_while_it_is_being_ended_starts_again(registry, clock):
    registry.submit(request(), Origin.SYNC, 10)
    job = take(registry)
    clock.now += 6
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED
    assert not registry.requeue(job, if_wanted=True)
    registry.submit(request(), Origin.SYNC, 10)
    assert registry.requeue(job, if_wanted=True)
    again = take(registry)
    assert (again.attempt, again.attempt_id) != (job.attempt, job.attempt_id)
    registry.cancel("a")
    assert not registry.requeue(again, if_wanted=True)


def test_a_waiting_job_that_the_asynchronous_api_joins_outlives_its_client(registry, clock):
    registry.submit(request(), Origin.SYNC, 10)
    registry.submit(request(), Origin.ASYNC, 10)
    clock.now += 60
    assert registry.sweep(max_attempts=3) == []
    assert take(registry) is not None


def test_a_claimed_job_is_never_resumed_without_its_claim(registry, clock):
    registry.submit(request(), Origin.CLAIMED, 10)
    assert take(registry) is None
    assert take(registry, only="a").id == "a"
    clock.now += 21
    assert take(registry) is None
    assert registry.sweep(max_attempts=3) == []
    assert take(registry, only="a").attempt == 2
    clock.now += 200
    assert registry.sweep(max_attempts=3) == ["a"]


def test_jobs_survive_a_restart(tmp_path, clock):
    path = tmp_path / "jobs.sqlite3"
    first = JobRegistry(path, clock)
    first.submit(request("running"), Origin.ASYNC, 10, Ticket(metadata={"who": "me"}))
    take(first)
    clock.now += 1
    first.submit(request("waiting"), Origin.ASYNC, 10)
    first.close()

    second = JobRegistry(path, clock)
    assert second.get("running").metadata == {"who": "me"}
    assert take(second).id == "waiting"
    clock.now += 21
    assert {take(second).id, take(second).id} == {"running", "waiting"}
    second.close()


def test_pages_hold_every_job_once_newest_first(registry, clock):
    for n in range(7):
        registry.submit(request(f"job{n}"), Origin.ASYNC, 10)
        clock.now += n % 2  # some share an instant
    seen, before = [], None
    while page := registry.page(None, 3, before):
        seen += [job.id for job in page]
        before = (page[-1].created, page[-1].id)
    assert sorted(seen) == sorted(f"job{n}" for n in range(7))
    assert len(set(seen)) == 7


def test_old_finished_jobs_are_forgotten(registry, clock):
    for n in range(5):
        registry.submit(request(f"job{n}"), Origin.ASYNC, 10)
        registry.finish(take(registry), SUCCESS, DONE)
        clock.now += 1
    registry.forget(keep=2)
    assert [job.id for job in registry.page(None, 10, None)] == ["job4", "job3"]


def test_the_file_is_for_its_owner_alone(registry, tmp_path):
    assert (tmp_path / "jobs.sqlite3").stat().st_mode & 0o077 == 0


def test_a_registry_of_another_version_is_made_anew(tmp_path, clock):
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, state TEXT)")
    old.close()
    registry = JobRegistry(path, clock)
    registry.submit(request(), Origin.ASYNC, 10)
    assert take(registry).id == "a"
    registry.close()


def test_warnings_and_the_queues_own_id_stay_with_the_job(registry):
    """Mends 1.9 and 1.17: what came with a job is in its row and in its answers."""
    ticket = Ticket(warnings=("The aspect ratio is odd.",), queue_job_id="salad-7")
    registry.submit(request(), Origin.SYNC, 10, ticket)
    job = take(registry)
    assert (job.warnings, job.queue_job_id) == (("The aspect ratio is odd.",), "salad-7")
    done = Success(SUCCESS.output_url, SUCCESS.metrics, ("The larger of two faces speaks.",))
    registry.finish(job, done, DONE)
    both = ["The aspect ratio is odd.", "The larger of two faces speaks."]
    ended = registry.get("a")
    assert job_body(ended)["warnings"] == both
    assert generate_body("a", ended.outcome, ended.warnings)["warnings"] == both
