"""The registry: one job per id, leases, joins, cancels, and survival of a restart."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestrator.store.changes import MAX_EVENTS
from orchestrator.store.deliveries import MAX_WEBHOOKS
from orchestrator.store.delivery_values import TakenDelivery, Try
from orchestrator.store.errors import JobConflict, QueueFull
from orchestrator.store.tables import metadata
from serve_app.api.answers import generate_body, job_body
from serve_app.contract.outcomes import Failure, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import CANCELLED, Origin, SubmissionOptions, TooManyJoined, Verdict
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.submissions import MAX_KEYS

DONE = Progress(Phase.COMPLETED, 1.0, 10, 10)
RUNNING = Progress(Phase.INFERRING, 0.5, 5, 10)
FAILURE = Failure("media_error", "no", "no_face", "preprocessing", False, 422)
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


def due(registry: JobRegistry) -> list[TakenDelivery]:
    """Return the webhooks that are due, and that nobody else gets for a minute from now on."""
    return list(iter(lambda: registry.take_delivery(60.0), None))


def test_jobs_start_in_the_order_they_came(registry, clock):
    for name in "bac":
        registry.submit(request(name), Origin.ASYNC, 10)
        clock.now += 1
    assert [take(registry).id for _ in range(3)] == ["b", "a", "c"]
    assert take(registry) is None


def test_only_jobs_that_wait_are_counted_as_queued(registry):
    for name in "abc":
        registry.submit(request(name), Origin.ASYNC, max_queued=10)
    take(registry)
    registry.cancel("c")
    assert registry.count_queued() == 1


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


@pytest.mark.parametrize("status", ["queued", "running", "succeeded"])
def test_other_content_under_the_same_id_is_a_conflict(registry, status):
    registry.submit(request(), Origin.ASYNC, 10)
    if status != "queued":
        job = take(registry)
    if status == "succeeded":
        registry.finish(job, SUCCESS, DONE)
    with pytest.raises(JobConflict):
        registry.submit(request(video="https://h/other.mp4"), Origin.ASYNC, 10)


def test_the_same_files_under_a_new_signature_are_the_same_job(registry):
    """Mend 1.1: query and fragment are no part of a job's identity; the rest of it is."""
    registry.submit(request(video="https://Host.example/v.mp4?X-Sig=1#t=1"), Origin.ASYNC, 10)
    same = request(video="https://host.EXAMPLE/v.mp4?X-Sig=2")
    assert not registry.submit(same, Origin.ASYNC, 10)[1]
    for other in ("http://host.example/v.mp4", "https://host.example/V.mp4", "https://h/v.mp4"):
        with pytest.raises(JobConflict):
            registry.submit(request(video=other), Origin.ASYNC, 10)
    with pytest.raises(JobConflict):
        registry.submit(same.model_copy(update={"resolution": "720p"}), Origin.ASYNC, 10)


def test_a_queued_job_is_started_with_the_newest_signature(registry):
    """Mend 1.1: by the time that it starts, the first one may have expired."""
    registry.submit(request(video="https://h/v.mp4?sig=old"), Origin.ASYNC, 10)
    registry.submit(request(video="https://h/v.mp4?sig=new"), Origin.ASYNC, 10)
    assert take(registry).request.video_url == "https://h/v.mp4?sig=new"


def end(registry: JobRegistry, status: str) -> None:
    """Give the running job of the id `a` an end."""
    outcome = {"failed": FAILURE, "cancelled": CANCELLED, "succeeded": SUCCESS}[status]
    registry.finish(take(registry), outcome, RUNNING)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_failed_or_cancelled_job_may_come_again_with_any_content(registry, status):
    """Mend 1.1."""
    registry.submit(request(), Origin.ASYNC, 10)
    end(registry, status)
    assert registry.get("a").status == status
    other = request(video="https://elsewhere/other.mp4")
    job, is_new = registry.submit(other, Origin.SYNC, 10)
    assert (is_new, job.status, job.run, job.request) == (True, "queued", 2, other)
    assert take(registry).attempt == 1


def test_a_success_whose_output_is_gone_is_done_again(registry):
    """Mend 1.11: but only that success; one that came since is not thrown away."""
    registry.submit(request(), Origin.ASYNC, 10)
    end(registry, "succeeded")
    gone = registry.find("a", None)
    assert registry.submit(request(), Origin.SYNC, 10, gone=gone)[1]
    end(registry, "succeeded")
    job, is_new = registry.submit(request(), Origin.SYNC, 10, gone=gone)
    assert (is_new, job.status, job.run) == (False, "succeeded", 2)


def test_an_idempotency_key_gives_the_first_job_whatever_the_id(registry):
    submission = SubmissionOptions(idempotency_key="k")
    registry.submit(request("a"), Origin.ASYNC, 10, submission)
    job, is_new = registry.submit(request("b"), Origin.ASYNC, 10, submission)
    assert (job.id, is_new) == ("a", False)
    with pytest.raises(JobConflict):
        registry.submit(request("c", video="https://h/other.mp4"), Origin.ASYNC, 10, submission)


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
    job, was_live = registry.cancel("a")
    assert (job.status, was_live) == ("cancelled", True)
    assert take(registry) is None


def test_cancelling_a_running_job_ends_it_at_its_next_beat(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    job = take(registry)
    assert registry.cancel("a")[0].status == "running"
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED


def test_a_job_without_clients_ends(registry, clock):
    registry.submit(request(), Origin.SYNC, 10)
    job = take(registry)
    clock.now += 4
    registry.keep_alive(["a"])
    clock.now += 4
    assert registry.beat(job, 20.0, RUNNING) is Verdict.GO_ON
    clock.now += 6
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED


def test_a_job_whose_client_comes_back_while_it_is_being_ended_starts_again(registry, clock):
    registry.submit(request(), Origin.SYNC, 10)
    job = take(registry)
    clock.now += 6
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED
    assert not registry.requeue(job, if_client_is_back=True)
    registry.submit(request(), Origin.SYNC, 10)
    assert registry.requeue(job, if_client_is_back=True)
    again = take(registry)
    assert (again.attempt, again.attempt_id) != (job.attempt, job.attempt_id)
    registry.cancel("a")
    assert not registry.requeue(again, if_client_is_back=True)


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


def test_a_claimed_job_that_the_asynchronous_api_joins_outlives_its_claim(registry, clock):
    """Whoever entered it there has been promised a webhook, whatever the orchestrator does."""
    job, _ = registry.submit(request(), Origin.CLAIMED, 10)
    assert registry.submit(request(), Origin.ASYNC, 10)[0].origin is Origin.ASYNC
    assert registry.submit(request(), Origin.CLAIMED, 10)[0].origin is Origin.ASYNC
    clock.now += 1000
    assert registry.sweep(max_attempts=3) == []
    assert take(registry).id == job.id


def test_jobs_survive_a_restart(tmp_path, clock):
    path = tmp_path / "jobs.sqlite3"
    first = JobRegistry(path, clock)
    first.submit(request("running"), Origin.ASYNC, 10, SubmissionOptions(metadata={"who": "me"}))
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
    while (page := registry.page(None, 3, before)).jobs:
        seen += [job.id for job in page.jobs]
        before = (page.jobs[-1].created, page.jobs[-1].id)
    assert sorted(seen) == sorted(f"job{n}" for n in range(7))
    assert len(set(seen)) == 7


def test_old_finished_jobs_are_forgotten(registry, clock):
    for n in range(5):
        registry.submit(request(f"job{n}"), Origin.ASYNC, 10)
        registry.finish(take(registry), SUCCESS, DONE)
        clock.now += 1
    registry.forget(keep=2)
    assert [job.id for job in registry.page(None, 10).jobs] == ["job4", "job3"]


def test_the_file_is_for_its_owner_alone(registry, tmp_path):
    assert (tmp_path / "jobs.sqlite3").stat().st_mode & 0o077 == 0


def test_warnings_and_the_queues_own_id_stay_with_the_job(registry):
    """Mends 1.9 and 1.17: what came with a job is in its row and in its answers."""
    submission = SubmissionOptions(warnings=("The aspect ratio is odd.",), queue_job_id="salad-7")
    registry.submit(request(), Origin.SYNC, 10, submission)
    job = take(registry)
    assert (job.warnings, job.queue_job_id) == (("The aspect ratio is odd.",), "salad-7")
    done = Success(SUCCESS.output_url, SUCCESS.metrics, ("The larger of two faces speaks.",))
    registry.finish(job, done, DONE)
    both = ["The aspect ratio is odd.", "The larger of two faces speaks."]
    ended = registry.get("a")
    assert job_body(ended)["warnings"] == both
    assert generate_body("a", ended.outcome, ended.warnings)["warnings"] == both


def test_cancelling_what_has_ended_says_so(registry):
    """Mend 2.10."""
    registry.submit(request(), Origin.ASYNC, 10)
    end(registry, "succeeded")
    job, was_live = registry.cancel("a")
    assert (job.status, was_live) == ("succeeded", False)
    assert registry.cancel("unknown") is None


# Joining -----------------------------------------------------------------------------------------


def test_who_joins_a_job_leaves_webhook_metadata_and_key_with_it(registry):
    """Mend 3.1: the joiner's webhook comes, and its key finds the job later."""
    registry.submit(request(), Origin.SYNC, 10)
    first = SubmissionOptions("https://hook/1", {"who": "one", "only": 1}, "key-1")
    second = SubmissionOptions("https://hook/2", {"who": "two", "also": 2}, "key-2")
    registry.submit(request(), Origin.ASYNC, 10, first)
    job, _ = registry.submit(request(), Origin.ASYNC, 10, second)
    assert job.metadata == {"who": "one", "only": 1, "also": 2}
    assert due(registry) == []
    end(registry, "succeeded")
    assert {item.url: item.snapshot["metadata"] for item in due(registry)} == {
        "https://hook/1": first.metadata,
        "https://hook/2": second.metadata,
    }
    assert due(registry) == []
    for key in ("key-1", "key-2"):
        again = registry.submit(
            request("other-id"), Origin.ASYNC, 10, SubmissionOptions(idempotency_key=key)
        )
        assert (again[0].id, again[1]) == ("a", False)


def test_a_webhook_that_joins_an_ended_job_is_called_once_too(registry):
    """Mend 3.1."""
    registry.submit(request(), Origin.ASYNC, 10)
    end(registry, "succeeded")
    told = []
    for _ in range(2):
        registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1"))
        told += [item.url for item in due(registry)]
    assert told == ["https://hook/1"]


@pytest.mark.parametrize(
    ("limit", "submission"),
    [
        (MAX_WEBHOOKS, lambda n: SubmissionOptions(f"https://hook/{n}")),
        (MAX_KEYS, lambda n: SubmissionOptions(idempotency_key=f"key-{n}")),
    ],
)
def test_what_one_job_keeps_of_its_callers_is_bounded(registry, limit, submission):
    """Mend 3.1."""
    for n in range(limit):
        registry.submit(request(), Origin.ASYNC, 10, submission(n))
    with pytest.raises(TooManyJoined):
        registry.submit(request(), Origin.ASYNC, 10, submission(limit))
    registry.submit(request(), Origin.ASYNC, 10, submission(0))  # what is known is welcome


@pytest.mark.parametrize("second_end", ["succeeded", "failed"])
def test_a_job_that_ends_again_is_told_again(registry, second_end):
    """Mend 3.8: the second end has an event of its own, with what was sent with the second run."""
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1", {"run": 1}))
    end(registry, "failed")
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1", {"run": 2}))
    [first] = due(registry)  # only now, after the job has been queued again
    assert (first.event, first.snapshot["metadata"]) == ("avatar.job.failed", {"run": 1})
    end(registry, second_end)
    [second] = due(registry)
    assert (second.event, second.snapshot["run"]) == (f"avatar.job.{second_end}", 2)
    assert second.snapshot["metadata"] == {"run": 2}
    assert first.id != second.id


def test_who_was_told_of_a_failure_is_told_of_the_success_of_a_retry(registry):
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1"))
    end(registry, "failed")
    due(registry)
    registry.retry("a")
    end(registry, "succeeded")
    assert [item.event for item in due(registry)] == ["avatar.job.succeeded"]


# Phases ------------------------------------------------------------------------------------------


def phases_after(registry: JobRegistry, number: int = 0) -> list[tuple[int, str]]:
    return [
        (event.number, str(event.progress.phase)) for event in registry.follow("a", number).events
    ]


def at(phase: Phase) -> Progress:
    return Progress(phase, 0.5)


def test_every_change_of_phase_is_kept_in_order(registry):
    """Mend 0: those that no beat stored come with the end."""
    registry.submit(request(), Origin.ASYNC, 10)
    job = take(registry)
    registry.beat(job, 20.0, RUNNING, [at(Phase.DOWNLOADING), at(Phase.INFERRING)])
    registry.finish(job, SUCCESS, DONE, [at(Phase.ENCODING), at(Phase.UPLOADING)])
    all_four = phases_after(registry)
    assert [phase for _, phase in all_four] == ["downloading", "inferring", "encoding", "uploading"]
    assert sorted(all_four) == all_four
    assert phases_after(registry, number=all_four[1][0]) == all_four[2:]


def test_who_has_followed_an_earlier_run_sees_the_next_one_from_its_beginning(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    registry.finish(take(registry), FAILURE, DONE, [at(Phase.DOWNLOADING), at(Phase.INFERRING)])
    seen = phases_after(registry)[-1][0]
    registry.submit(request(), Origin.ASYNC, 10)
    registry.beat(take(registry), 20.0, RUNNING, [at(Phase.DOWNLOADING)])
    assert [phase for _, phase in phases_after(registry)] == ["downloading"]
    assert phases_after(registry) == phases_after(registry, number=seen)


def test_phases_of_a_lost_attempt_and_of_an_earlier_run_do_not_mix_in(registry, clock):
    registry.submit(request(), Origin.ASYNC, 10)
    lost = take(registry)
    clock.now += 21
    job = take(registry)
    assert registry.beat(lost, 20.0, RUNNING, [at(Phase.INFERRING)]) is Verdict.LOST
    assert not registry.finish(lost, SUCCESS, DONE, [at(Phase.UPLOADING)])
    assert phases_after(registry) == []
    registry.finish(job, FAILURE, DONE, [at(Phase.DOWNLOADING)])
    registry.submit(request(), Origin.ASYNC, 10)
    assert phases_after(registry) == []


def test_the_phases_of_one_job_are_bounded(registry):
    registry.submit(request(), Origin.ASYNC, 10)
    job = take(registry)
    for _ in range(MAX_EVENTS):
        registry.beat(job, 20.0, RUNNING, [at(Phase.INFERRING), at(Phase.ENCODING)])
    kept = phases_after(registry)
    assert len(kept) == MAX_EVENTS
    assert kept[-1][0] - kept[0][0] == MAX_EVENTS - 1


# Leases, order, pages ----------------------------------------------------------------------------


def test_a_job_that_lives_in_this_process_is_not_started_again(registry, clock):
    """Mend 3.2: however long its lease could not be renewed."""
    registry.submit(request(), Origin.ASYNC, 10)
    job = registry.take(lease_s=20.0, max_attempts=1)
    clock.now += 1000
    assert registry.take(lease_s=20.0, max_attempts=3, active=["a"]) is None
    assert registry.sweep(max_attempts=1, active=["a"]) == []
    assert registry.beat(job, 20.0, RUNNING) is Verdict.GO_ON
    assert registry.finish(job, SUCCESS, DONE)


def test_a_job_that_a_client_here_waits_for_is_kept_alive(registry, clock):
    """Mend 3.2: though the wishes of its client could not be written for a while."""
    registry.submit(request(), Origin.SYNC, 10)
    clock.now += 60
    assert registry.sweep(max_attempts=3, awaited=["a"]) == []
    job = take(registry)
    clock.now += 60
    assert registry.beat(job, 20.0, RUNNING, has_client=True) is Verdict.GO_ON
    clock.now += 60
    assert registry.beat(job, 20.0, RUNNING) is Verdict.CANCELLED


def test_a_waiting_job_knows_its_place(registry, clock):
    """Mend 2.11: 1 is next; a running job has no place."""
    for name in "abc":
        registry.submit(request(name), Origin.ASYNC, 10)
        clock.now += 1
    assert [registry.get(name).queue_position for name in "abc"] == [1, 2, 3]
    take(registry)
    assert [job.queue_position for job in registry.page(None, 10).jobs] == [2, 1, None]


def test_a_page_is_bounded_in_bytes_and_holds_one_job_at_least(registry, clock):
    """Mend 4.3."""
    for n in range(4):
        submission = SubmissionOptions(metadata={"note": "ü" * 1000})
        registry.submit(request(f"job{n}"), Origin.ASYNC, 10, submission)
        clock.now += 1
    seen, before = [], None
    while True:
        page = registry.page(None, 10, before, max_chars=15_000)
        assert len(page.jobs) == 2
        seen += [job.id for job in page.jobs]
        if page.next_cursor is None:
            break
        before = (page.jobs[-1].created, page.jobs[-1].id)
    assert seen == ["job3", "job2", "job1", "job0"]
    assert len(registry.page(None, 10, max_chars=1).jobs) == 1
    assert registry.page(None, 4).next_cursor is None


def test_what_belongs_to_a_forgotten_job_is_forgotten(registry):
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1", None, "key"))
    job = take(registry)
    assert registry.beat(job, 20.0, RUNNING, (RUNNING,)) is Verdict.GO_ON
    assert registry.finish(job, SUCCESS, DONE)
    [taken] = due(registry)
    registry.settle_delivery(taken, Try(204), None)
    registry.forget(keep=0)
    with registry.file.read() as tx:
        of_jobs = [table for table in metadata.sorted_tables if table.name != "virtual_clock"]
        for table in of_jobs:
            assert tx.execute(sa.select(table)).all() == [], table.name
    other = request(video="https://h/other.mp4")
    assert registry.submit(other, Origin.ASYNC, 10, SubmissionOptions(idempotency_key="key"))[1]


@pytest.mark.parametrize(
    ("result", "pause_s", "is_forgotten"),
    [
        (Try(204), None, True),
        (Try(410, "answered 410"), None, True),
        (Try(500, "answered 500"), 5.0, False),
    ],
)
def test_a_job_is_forgotten_once_its_webhook_is_delivered_or_given_up(
    registry, result, pause_s, is_forgotten
):
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1"))
    end(registry, "succeeded")
    registry.forget(keep=0)
    [taken] = due(registry)
    registry.forget(keep=0)
    assert registry.get("a") is not None
    assert registry.settle_delivery(taken, result, pause_s)
    registry.forget(keep=0)
    assert (registry.get("a") is None) is is_forgotten


def test_so_many_jobs_are_kept_for_their_webhooks(registry, clock, caplog):
    for name in "abc":
        registry.submit(request(name), Origin.ASYNC, 10, SubmissionOptions("https://hook/1"))
        end(registry, "succeeded")  # the only one that waits
        clock.now += 1
    registry.forget(keep=0, undelivered=2)
    assert [job.id for job in registry.page(None, 10).jobs] == ["c", "b"]
    assert "webhooks are dropped, because too many wait" in caplog.text


def test_a_job_whose_webhooks_stay_due_is_forgotten_after_a_day(registry, clock):
    registry.submit(request(), Origin.ASYNC, 10, SubmissionOptions("https://hook/1"))
    end(registry, "succeeded")
    clock.now += 25 * 3600
    registry.forget(keep=0)
    assert registry.get("a") is None
