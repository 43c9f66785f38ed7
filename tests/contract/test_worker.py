"""One worker against an orchestrator over real sockets: claim, run, report, survive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import random
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from musetalk_pipeline import files
from musetalk_pipeline.errors import DownloadFailed
from orchestrator.client import ClaimedJob, FinalReport
from orchestrator.errors import CallRejected, ServiceUnavailable
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.heartbeat import next_due
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.worker import MAX_STARTS
from tests.contract.fake_orchestrator import (
    PASS,
    FakeOrchestrator,
    answer,
    close,
    cut_off,
    late_answer,
    late_effect,
    lost_answer,
    stall,
)
from tests.contract.worker_rig import (
    DONE,
    OPTIONS,
    QUICK,
    WORKER_ID,
    Desk,
    ProgressCallback,
    Rig,
    worker_rig,
)
from tests.waiting import turns, until_async

ROOT = Path(__file__).resolve().parents[2]
FAILED = Failure(
    error_type="media_error",
    error_message="No face was found in any frame. Use a video that shows one.",
    code="no_face",
    stage="preprocessing",
    retryable=False,
    status_code=422,
)


def has_reports(fake: FakeOrchestrator, count: int) -> bool:
    return len(fake.jobs["job-1"].progress) >= count


def last_error(fake: FakeOrchestrator) -> str | None:
    """Return the error in the newest heartbeat; `none yet` before the first."""
    beats = fake.of("heartbeat")
    error: str | None = beats[-1].body["error"] if beats else "none yet"
    return error


# A job from claim to report ----------------------------------------------------------------------


async def test_no_job_means_no_work(fake: FakeOrchestrator, tmp_path: Path) -> None:
    async with worker_rig(fake, tmp_path) as rig:
        assert not await rig.worker.claim_and_run()
        assert rig.desk.ran == []
    assert fake.violations == []


async def test_a_claimed_job_is_run_and_its_success_reported(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        (request,) = rig.desk.ran
        assert request.musetalk_job_id == "job-1"
        assert request.video_url.endswith("signature=video-secret")
        assert (request.aspect_ratio, request.resolution) == ("9:16", "720p")
        assert rig.outbox.pending() == 0
        assert rig.worker.current_job_id is None
    job = fake.jobs["job-1"]
    assert (job.status, job.output_url, job.metrics) == ("succeeded", DONE.output_url, DONE.metrics)
    assert len(job.accepted) == 1
    assert fake.violations == []


async def test_progress_goes_through_the_phases_in_order(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        # Slow enough for each state to be sent; the reporter itself sends at most 50 a second.
        for progress in (
            Progress(Phase.QUEUED, 0.0),
            Progress(Phase.DOWNLOADING, 0.0),
            Progress(Phase.INFERRING, 0.05, 0, 100),
            Progress(Phase.INFERRING, 0.5, 50, 100),
            Progress(Phase.ENCODING, 0.9, 100, 100),
            Progress(Phase.UPLOADING, 0.95, 100, 100),
        ):
            on_progress(progress)
            wanted = len(fake.jobs["job-1"].progress) + 2
            await asyncio.to_thread(fake.wait_until, partial(has_reports, fake, wanted))
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    sent = fake.jobs["job-1"].progress
    phases = list(dict.fromkeys(report["phase"] for report in sent))
    assert phases == ["preparing", "downloading", "inferring", "encoding", "uploading"]
    fractions = [report["progress"] for report in sent]
    assert fractions == sorted(fractions)
    for report in sent:
        if report["phase"] == "inferring":
            assert report["metrics"]["frames_total"] == 100
        assert report["config_label"] == "default"
    assert {r["metrics"]["frames_done"] for r in sent if r["phase"] == "inferring"} == {0, 50}
    assert fake.violations == []


async def test_progress_never_goes_back_and_never_ends_a_job(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        on_progress(Progress(Phase.ENCODING, 0.8, 80, 100))
        on_progress(Progress(Phase.ENCODING, 0.3, 30, 100))
        on_progress(Progress(Phase.COMPLETED, 1.0, 100, 100))  # the final report's business alone
        await asyncio.to_thread(
            fake.wait_until,
            lambda: any(each["progress"] == 0.8 for each in fake.jobs["job-1"].progress),
        )
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    assert {r["progress"] for r in fake.jobs["job-1"].progress} <= {0.0, 0.8}
    assert fake.violations == []


async def test_a_flood_of_progress_is_thinned_to_the_newest(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        for done in range(2000):
            on_progress(Progress(Phase.INFERRING, done / 2000, done, 2000))
            if done % 100 == 0:
                await turns()
        await asyncio.to_thread(
            fake.wait_until,
            lambda: any(
                (report["metrics"] or {}).get("frames_done") == 1999
                for report in fake.jobs["job-1"].progress
            ),
        )
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    assert len(fake.of("progress")) < 100


async def test_stalled_progress_does_not_hold_up_the_job(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake.always("progress", stall(30.0))
    ended = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        for done in range(1000):
            on_progress(Progress(Phase.INFERRING, done / 1000, done, 1000))
        ended.set()
        return DONE

    timeouts = replace(QUICK, progress_s=0.5)
    async with worker_rig(fake, tmp_path, desk=Desk(job), timeouts=timeouts) as rig:
        work = asyncio.create_task(rig.worker.claim_and_run())
        await asyncio.wait_for(ended.wait(), 10.0)
        await work
    assert fake.jobs["job-1"].status == "succeeded"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_refused_progress_does_not_end_the_job(
    fake: FakeOrchestrator, tmp_path: Path, status: int
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 3)
        return DONE

    fake.add_job("job-1")
    fake.always("progress", answer(status))
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"


async def test_no_progress_takes_effect_after_the_final_report(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """A late `running` would make a finished job look as if it were running again."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 1)
        on_progress(Progress(Phase.UPLOADING, 0.95))
        # It is on its way and not yet handled.
        await asyncio.to_thread(fake.wait_until, lambda: fake.arrived["progress"] >= 2)
        return DONE

    fake.add_job("job-1")
    fake.always("progress", late_effect(0.5))
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    await asyncio.to_thread(fake.stop)  # waits for every handler
    assert [call.kind for call in fake.calls][-1] == "final"
    assert len(fake.of("progress")) >= 2
    assert fake.jobs["job-1"].status == "succeeded"


# Failures ----------------------------------------------------------------------------------------


async def test_a_runner_that_raises_a_media_error_reports_its_message(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        raise DownloadFailed("Download failed: 404 Not Found")

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].error == "Download failed: 404 Not Found"


async def test_a_runner_that_crashes_reports_the_kind_and_no_secret(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        raise ZeroDivisionError("https://media.example/?signature=video-secret")

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        assert await rig.worker.claim_and_run()
        assert not await rig.worker.claim_and_run()  # and it is fit for the next one
    error = fake.jobs["job-1"].error
    assert error is not None
    assert "ZeroDivisionError" in error
    assert "secret" not in error
    assert "job crashed" in caplog.text


async def test_unencodable_and_endless_errors_are_still_reported(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        return replace(FAILED, error_message="broken \udcff name " + "x" * 100_000)

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        await rig.worker.claim_and_run()
    error = fake.jobs["job-1"].error
    assert error is not None
    assert error.startswith("broken ? name x")
    assert len(error) <= 4000


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"video_url": None}, "video_url"),
        ({"audio_url": 7}, "audio_url"),
        ({"video_url": "x" * 10_000}, "video_url"),
        ({"musetalk_job_id": "x" * 300}, "musetalk_job_id"),
    ],
    ids=["missing", "number", "long", "id"],
)
async def test_an_invalid_job_is_reported_failed_with_the_field(
    fake: FakeOrchestrator, tmp_path: Path, fields: dict[str, object], word: str
) -> None:
    fake.add_job("job-1", **fields)
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.ran == []
    error = fake.jobs["job-1"].error
    assert error is not None
    assert word in error
    assert "secret" not in error
    assert fake.violations == []


async def test_what_a_claim_says_oddly_is_a_warning_and_never_a_failure(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.9: from sizes that the predecessor ignored to params that nobody knows."""
    odd = {"aspect_ratio": "9x16", "resolution": ["720p"], "params": {"unknown": 1, "crf": 30}}
    fake.add_job("job-1", **odd)
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        (request,), (submission,) = rig.desk.ran, rig.desk.submissions
    assert (request.aspect_ratio, request.resolution, request.params.crf) == ("9:16", None, 30)
    assert len(submission.warnings) == 3
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_buffer_job_without_an_id_of_its_own_is_done_under_the_buffers(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    key = fake.add_job("job-1", buffer_job_id="buf-1")
    fake.jobs[key].payload["musetalk_job_id"] = None
    async with worker_rig(fake, tmp_path, is_buffer=True) as rig:
        assert await rig.worker.claim_and_run()
        (request,) = rig.desk.ran
    assert request.musetalk_job_id == "buf-1"
    assert fake.jobs[key].status == "succeeded"
    assert {call.path for call in fake.of("progress")} == {"/internal/jobs/buf-1/progress"}


async def test_the_sizes_of_claims_are_ignored_where_that_is_asked_for(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.9: `LEGACY_SIZE=source`."""
    fake.add_job("job-1", aspect_ratio="1:1", resolution="512x512")
    options = replace(OPTIONS, legacy_size_source=True)
    async with worker_rig(fake, tmp_path, options=options) as rig:
        assert await rig.worker.claim_and_run()
        (request,) = rig.desk.ran
    assert (request.aspect_ratio, request.resolution) == (None, None)


# Claims ------------------------------------------------------------------------------------------


async def test_claims_are_retried_after_1_2_and_4_seconds(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake.plan("claim", answer(503), close(), answer(200, b"not json"))
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.pauses == [1.0, 2.0, 4.0]
    assert fake.jobs["job-1"].status == "succeeded"


async def test_claims_are_given_up_after_the_third_retry(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.always("claim", answer(500))
    async with worker_rig(fake, tmp_path) as rig:
        assert not await rig.worker.claim_and_run()
        assert rig.pauses == [1.0, 2.0, 4.0]
    assert len(fake.of("claim")) == 4


async def test_a_rejected_claim_is_not_repeated_at_once(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.plan("claim", answer(401))
    async with worker_rig(fake, tmp_path) as rig:
        assert not await rig.worker.claim_and_run()
        assert rig.pauses == []


async def test_nothing_is_claimed_while_no_replica_can_work(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    desk = Desk(is_able=False)
    async with worker_rig(fake, tmp_path, desk=desk) as rig:
        assert not await rig.worker.claim_and_run()
        assert fake.of("claim") == []
        desk.is_able = True
        assert await rig.worker.claim_and_run()


async def test_claiming_stops_between_retries_when_draining_begins(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    desk = Desk()

    async def can_run() -> bool:
        return len(fake.of("claim")) < 2

    desk.can_run = can_run  # type: ignore[method-assign]
    fake.always("claim", answer(503))
    async with worker_rig(fake, tmp_path, desk=desk) as rig:
        assert not await rig.worker.claim_and_run()
    assert len(fake.of("claim")) == 2
    assert fake.jobs["job-1"].status == "queued"


async def test_a_second_call_while_a_job_runs_does_nothing(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    going = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await going.wait()
        return DONE

    fake.add_job("job-1")
    fake.add_job("job-2")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        first = asyncio.create_task(rig.worker.claim_and_run())
        await rig.until(lambda: bool(rig.desk.ran))
        assert not await rig.worker.claim_and_run()
        assert len(fake.of("claim")) == 1
        going.set()
        assert await first


async def test_a_full_outbox_stops_claiming(fake: FakeOrchestrator, tmp_path: Path) -> None:
    """A report that cannot be kept would be a lost job."""
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, is_sending=False, outbox_capacity=2) as rig:
        for number in range(2):
            await rig.outbox.put(report(number))
        assert not await rig.worker.claim_and_run()
        assert fake.of("claim") == []
        await rig.outbox.deliver_round(accept)
        work = asyncio.create_task(rig.worker.claim_and_run())
        await rig.until(lambda: len(fake.of("claim")) == 1)
        await rig.until(lambda: rig.outbox.pending() == 1)
        await rig.outbox.deliver_round(accept)
        assert await work


# Cancelled and reassigned jobs -------------------------------------------------------------------


@pytest.mark.parametrize("status", [409, 410])
async def test_a_job_that_is_gone_is_stopped_and_not_reported(
    fake: FakeOrchestrator, tmp_path: Path, status: int
) -> None:
    stopped = asyncio.Event()
    desk = Desk()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        fake.always("progress", answer(status))
        await stopped.wait()
        return replace(FAILED, error_message="The job was cancelled.", cancelled=True)

    async def cancel(job_id: str) -> None:
        desk.cancelled.append(job_id)
        stopped.set()

    desk.job, desk.cancel = job, cancel  # type: ignore[method-assign]
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=desk) as rig:
        assert await rig.worker.claim_and_run()
        assert desk.cancelled == ["job-1"]
        assert rig.outbox.pending() == 0
        assert rig.worker.current_job_id is None
        assert not await rig.worker.claim_and_run()  # nor is it resumed
    assert fake.of("final") == []


async def test_a_job_whose_cancel_fails_is_stopped_all_the_same(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    desk = Desk()
    was_cancelled = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        fake.cancel("job-1")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return DONE

    async def cancel(job_id: str) -> None:
        raise RuntimeError("registry closed")

    desk.job, desk.cancel = job, cancel  # type: ignore[method-assign]
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=desk) as rig:
        assert await rig.worker.claim_and_run()
    assert was_cancelled.is_set()
    assert fake.of("final") == []


async def test_a_silent_job_still_learns_that_it_was_cancelled(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """The last state is repeated, because its answer is the only way to know."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 1)
        fake.cancel("job-1")
        await asyncio.Event().wait()
        return DONE

    fake.add_job("job-1")
    options = replace(OPTIONS, cancel_wait_s=0.05)
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=options) as rig:
        assert await asyncio.wait_for(rig.worker.claim_and_run(), 20.0)
        assert rig.desk.cancelled == ["job-1"]


# The final report --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
async def test_the_final_report_is_sent_until_it_is_accepted(
    fake: FakeOrchestrator, tmp_path: Path, status: int
) -> None:
    fake.add_job("job-1")
    fake.plan("final", *[answer(status)] * 4)
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
    calls = fake.of("final")
    assert len(calls) == 5
    assert len({call.raw for call in calls}) == 1  # the same bytes each time
    assert fake.jobs["job-1"].status == "succeeded"


async def test_the_final_report_outlives_every_way_of_not_answering(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake.plan("final", close(), cut_off(), stall(30.0))
    timeouts = replace(QUICK, report_s=0.5)
    async with worker_rig(fake, tmp_path, timeouts=timeouts) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
    assert len(fake.of("final")) >= 4
    assert fake.jobs["job-1"].status == "succeeded"


@pytest.mark.parametrize("status", [409, 410, 422])
async def test_a_final_refusal_ends_the_sending_and_is_logged(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    fake.add_job("job-1")
    fake.always("final", answer(status))
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
    assert len(fake.of("final")) == 1
    assert "final report refused for good" in caplog.text


async def test_a_lost_answer_makes_the_report_come_twice_and_do_no_harm(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake.plan("final", lost_answer())
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
    job = fake.jobs["job-1"]
    assert (job.status, len(job.accepted)) == ("succeeded", 2)


async def test_the_report_is_on_disk_before_it_is_sent_and_survives_a_restart(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    options = replace(OPTIONS, report_wait_s=0.05)
    async with worker_rig(fake, tmp_path, options=options, is_sending=False) as rig:
        assert await rig.worker.claim_and_run()
    assert fake.of("final") == []
    (stored,) = (tmp_path / "outbox").glob("*.json")
    assert json.loads(json.loads(stored.read_text())["body"])["output_url"] == DONE.output_url
    async with worker_rig(fake, tmp_path) as rig:  # the restart
        await rig.until(lambda: fake.jobs["job-1"].status == "succeeded")
        await rig.until(lambda: rig.outbox.pending() == 0)
    assert fake.jobs["job-1"].claims == 1


async def test_an_outage_of_the_orchestrator_delays_the_report_only(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(fake.go_away)
        return DONE

    fake.add_job("job-1")
    options = replace(OPTIONS, report_wait_s=0.2)
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=options) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 1
        fake.come_back()
        await rig.until(lambda: fake.jobs["job-1"].status == "succeeded")


# Kills, restarts, draining -----------------------------------------------------------------------


async def test_a_killed_workers_job_is_resumed_by_its_successor(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """The successor's heartbeats look alive to the orchestrator, which would wait for ever."""
    fake.add_job("job-1")
    job = ClaimedJob("job-1", fake.jobs["job-1"].payload)
    killed = ClaimJournal(tmp_path / "claims", WORKER_ID)
    assert killed.acquire()
    fake._hand_out(WORKER_ID)  # what the killed process had done
    await killed.start(HeldJob(job))
    killed.release()  # as the kernel does
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 1)
        beat = fake.of("heartbeat")[0].body
        assert (beat["status"], beat["current_job_id"]) == ("busy", "job-1")
        assert await rig.worker.claim_and_run()
        assert fake.of("claim") == []
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_job_that_was_left_waits_until_it_can_be_done(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Without a registry that takes it, for one, it would be reported as failed."""
    fake.add_job("job-1")
    fake._hand_out(WORKER_ID)
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    await journal.start(HeldJob(ClaimedJob("job-1", fake.jobs["job-1"].payload)))
    async with worker_rig(fake, tmp_path, desk=Desk(is_able=False)) as rig:
        assert not await rig.worker.claim_and_run()
        assert (rig.desk.ran, fake.of("final")) == ([], [])
        rig.desk.is_able = True
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_claim_that_cannot_be_removed_does_not_run_again(
    fake: FakeOrchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def stays(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".held":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stays)
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.worker.current_job_id is None
        assert not await rig.worker.claim_and_run()
    assert len(rig.desk.ran) == 1
    assert len(fake.of("final")) == 1


async def test_a_job_that_kills_the_worker_each_time_is_given_up(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake._hand_out(WORKER_ID)
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    held = HeldJob(ClaimedJob("job-1", fake.jobs["job-1"].payload), starts=MAX_STARTS - 1)
    await journal.start(held)
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.ran == []
    job = fake.jobs["job-1"]
    assert job.status == "failed"
    assert job.error is not None
    assert f"{MAX_STARTS} times" in job.error


async def test_a_cancelled_call_keeps_the_claim_and_reports_nothing(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    going = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await going.wait()
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        work = asyncio.create_task(rig.worker.claim_and_run())
        await rig.until(lambda: bool(rig.desk.ran))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert fake.of("final") == []
        assert rig.worker.current_job_id == "job-1"  # heartbeats go on saying so
        going.set()
        assert await rig.worker.claim_and_run()  # resumed, not claimed again
    assert fake.jobs["job-1"].status == "succeeded"
    assert fake.jobs["job-1"].claims == 1


async def test_a_claim_is_not_lost_when_the_call_is_cancelled_under_way(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    fake.plan("claim", late_answer(0.2))
    async with worker_rig(fake, tmp_path) as rig:
        work = asyncio.create_task(rig.worker.claim_and_run())
        await rig.until(lambda: len(fake.of("claim")) == 1)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"
    assert len(fake.of("claim")) == 1


async def test_storing_the_final_report_is_not_interrupted(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    loop, cancelled = asyncio.get_running_loop(), threading.Event()

    def cancel() -> None:
        work.cancel()
        loop.call_soon(cancelled.set)

    def slow_write(path: Path, text: str) -> None:
        loop.call_soon_threadsafe(cancel)
        assert cancelled.wait(30)
        files.write_atomically(path, text)

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, is_sending=False, write=slow_write) as rig:
        work = asyncio.create_task(rig.worker.claim_and_run())
        with pytest.raises(asyncio.CancelledError):
            await work
        assert rig.outbox.pending() == 1
        assert rig.worker.current_job_id is None
        assert ClaimJournal(tmp_path / "claims", WORKER_ID).read() == ()


async def test_the_wait_for_acceptance_ends_with_the_call(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, is_sending=False) as rig:
        work = asyncio.create_task(rig.worker.claim_and_run())
        journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
        await rig.until(lambda: rig.outbox.pending() == 1 and not journal.read())
        assert rig.worker.current_job_id == "job-1"
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert rig.worker.current_job_id is None
        assert rig.outbox.pending() == 1


async def test_a_drained_predecessor_and_its_successor_never_beat_at_once(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    going = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await going.wait()
        return DONE

    fake.add_job("job-1")
    fake.add_job("job-2")
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(
            worker_rig(fake, tmp_path, desk=Desk(job), is_beating=True)
        )
        draining = asyncio.create_task(old.worker.claim_and_run())
        await old.until(lambda: bool(old.desk.ran))
        fake.calls.clear()
        async with worker_rig(fake, tmp_path, is_beating=True) as new:
            assert not await new.worker.claim_and_run()
            await new.until(lambda: len(fake.of("heartbeat")) >= 5)
            beats = [call.body for call in fake.of("heartbeat")]
            # The first may have been on its way when the claim was answered.
            assert {beat["current_job_id"] for beat in beats[1:]} == {"job-1"}
            going.set()
            assert await draining
            await old.worker.aclose()
            assert await new.worker.claim_and_run()
    assert [fake.jobs[name].status for name in ("job-1", "job-2")] == ["succeeded"] * 2
    assert [fake.jobs[name].claims for name in ("job-1", "job-2")] == [1, 1]


async def test_an_idle_predecessor_makes_room_for_its_successor(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    options = replace(OPTIONS, handover_s=0.0)
    async with worker_rig(fake, tmp_path, options=options, is_beating=True) as old:
        await old.until(lambda: len(fake.of("heartbeat")) >= 4)  # nobody waits: it goes on
        fake.add_job("job-1")
        async with worker_rig(fake, tmp_path, is_beating=True) as new:
            await until_async(new.worker.claim_and_run, "the successor has not claimed the job")
            assert not await old.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_process_killed_in_mid_job_leaves_it_to_its_successor(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.contract.killable_worker", fake.url, str(tmp_path), cwd=ROOT
    )
    try:
        await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 1, 60.0)
    finally:
        victim.kill()
        await victim.wait()
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
    job = fake.jobs["job-1"]
    assert (job.status, job.claims, len(job.accepted)) == ("succeeded", 1, 1)
    assert fake.violations == []


async def test_the_same_job_handed_out_twice_is_answered_consistently(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        fake.hand_out_again("job-1")
        assert await rig.worker.claim_and_run()
    accepted = fake.jobs["job-1"].accepted
    assert len(accepted) == 2
    assert accepted[0] == accepted[1]


# Heartbeats --------------------------------------------------------------------------------------


async def test_the_first_heartbeat_comes_at_once_after_registration(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    options = replace(OPTIONS, heartbeat_interval_s=3600.0)
    async with worker_rig(fake, tmp_path, options=options, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) == 1)
    assert [call.kind for call in fake.calls] == ["register", "heartbeat"]
    body = fake.of("heartbeat")[0].body
    assert (body["status"], body["current_job_id"]) == ("idle", None)
    assert fake.violations == []


@pytest.mark.parametrize(
    ("now", "expected"),
    [(100.0, 105.0), (103.0, 105.0), (104.999, 105.0), (105.0, 110.0), (117.0, 120.0)],
)
def test_heartbeats_keep_to_their_grid(now: float, expected: float) -> None:
    assert next_due(100.0, now, 5.0) == expected


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan"), float("inf")])
def test_intervals_that_no_clock_can_keep_are_refused(interval_s: float) -> None:
    with pytest.raises(ValueError, match="POLL_INTERVAL_SEC"):
        WorkerOptions(heartbeat_interval_s=interval_s)


async def test_a_stalled_heartbeat_is_followed_by_the_next(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.plan("heartbeat", stall(60.0), stall(60.0))
    timeouts = replace(QUICK, heartbeat_s=0.5)
    async with worker_rig(fake, tmp_path, is_beating=True, timeouts=timeouts) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 5)
    assert [call.status for call in fake.of("heartbeat")[:5]] == [None, None, 200, 200, 200]


async def test_a_worker_that_the_orchestrator_forgot_registers_again(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 2)
        fake.plan("heartbeat", answer(404))
        await rig.until(lambda: len(fake.of("register")) == 2)
        await rig.until(lambda: fake.calls[-1].kind == "heartbeat" and fake.calls[-1].status == 200)


async def test_a_refused_registration_is_no_reason_to_be_silent(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.always("register", answer(404))
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 3)
    assert len(fake.of("register")) == 1


async def test_heartbeats_end_with_their_task(fake: FakeOrchestrator, tmp_path: Path) -> None:
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nothing is left that could beat


# Buffer mode -------------------------------------------------------------------------------------


async def test_a_buffer_worker_beats_claims_and_reports(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.add_job("job-1", buffer_job_id="buf-1")
    async with worker_rig(fake, tmp_path, is_buffer=True, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.ran[0].musetalk_job_id == "job-1"
        await rig.until(lambda: len(fake.of("heartbeat")) >= 2)
    job = fake.jobs["buf-1"]
    assert (job.status, job.output_url) == ("succeeded", DONE.output_url)
    assert fake.violations == []
    assert {call.path for call in fake.calls} == {
        f"/internal/buffer/workers/{WORKER_ID}/heartbeat",
        "/internal/buffer/jobs/claim",
        "/internal/jobs/job-1/progress",
        "/internal/buffer/jobs/buf-1/status",
    }


async def test_a_buffer_worker_says_why_it_cannot_work(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    desk = Desk(is_able=False)
    async with worker_rig(fake, tmp_path, desk=desk, is_buffer=True, is_beating=True) as rig:
        await rig.worker.claim_and_run()
        await rig.until(lambda: last_error(fake) == "No replica can take a job.")
        desk.is_able = True
        await rig.worker.claim_and_run()
        await rig.until(lambda: last_error(fake) is None)


# The outbox and the journal by themselves --------------------------------------------------------


async def accept(each: FinalReport) -> None:
    """Take a report, as an orchestrator does that is content."""


def report(number: int) -> FinalReport:
    return FinalReport(f"job-{number}", f"/internal/jobs/job-{number}/progress", "{}")


async def test_reports_are_sent_oldest_first_and_one_that_fails_does_not_block_the_rest(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        await outbox.put(report(number))
    tried: list[str] = []

    async def send(each: FinalReport) -> None:
        tried.append(each.job_id)
        if each.job_id == "job-1":
            raise ServiceUnavailable("poisoned", status_code=500)
        if each.job_id == "job-2":
            raise CallRejected("wrong key", status_code=401)

    assert not await outbox.deliver_round(send)
    assert tried == ["job-0", "job-1", "job-2", "job-3"]
    assert outbox.pending() == 2


async def test_a_round_ends_when_nobody_answers(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        await outbox.put(report(number))
    tried: list[str] = []

    async def send(each: FinalReport) -> None:
        tried.append(each.job_id)
        raise ServiceUnavailable("no answer")

    assert not await outbox.deliver_round(send)
    assert tried == ["job-0"]
    assert outbox.pending() == 4


async def test_a_crash_of_the_sender_does_not_end_the_delivery(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, first_pause_s=0.01)
    failures = iter([KeyError("bug"), None])

    async def send(each: FinalReport) -> None:
        failure = next(failures)
        if failure is not None:
            raise failure

    name = await outbox.put(report(1))
    delivery = asyncio.create_task(outbox.deliver_forever(send))
    assert await outbox.wait_settled(name, 10.0)
    delivery.cancel()


async def test_damaged_reports_are_set_aside(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    (tmp_path / "0.json").write_text('{"job_id": ')
    (tmp_path / "1.json").write_text('{"job_id": "x"}')
    (tmp_path / "2.json.part").write_text("half a rep")
    await outbox.put(report(1))
    sent: list[FinalReport] = []

    async def send(each: FinalReport) -> None:
        sent.append(each)

    assert await outbox.deliver_round(send)
    assert sent == [report(1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.json.unreadable",
        "1.json.unreadable",
        "2.json.part",
    ]


async def test_a_disk_that_takes_nothing_costs_no_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "outbox"
    outbox = Outbox(folder)
    folder.rmdir()
    folder.write_text("not a folder any more")
    name = await outbox.put(report(1))
    assert "kept in memory" in caplog.text
    assert outbox.pending() == 1
    sent: list[FinalReport] = []

    async def send(each: FinalReport) -> None:
        sent.append(each)

    folder.unlink()
    folder.mkdir()
    assert await outbox.deliver_round(send)
    assert sent == [report(1)]
    assert await outbox.wait_settled(name, 1.0)


async def test_a_report_that_comes_while_others_are_loaded_waits_for_the_next_round(
    tmp_path: Path,
) -> None:
    """Mend 3.9: a thread went through what `put` was writing to."""

    def disk_full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    outbox, sent = Outbox(tmp_path, write=disk_full), list[FinalReport]()

    async def send(each: FinalReport) -> None:
        sent.append(each)

    os.mkfifo(tmp_path / "slow.json")  # the load waits here until somebody writes
    await outbox.put(report(1))
    sending = asyncio.create_task(outbox.deliver_round(send))
    pipe = await asyncio.to_thread((tmp_path / "slow.json").open, "w")  # it has begun to read
    await outbox.put(report(2))
    pipe.close()
    await sending
    assert sent == [report(1)]
    await outbox.deliver_round(send)
    assert sent == [report(1), report(2)]


async def test_the_name_of_a_report_is_on_the_disk_before_it_is_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mend 3.9: else a crash of the machine may lose a file whose bytes are there."""
    seen: list[tuple[Path, list[str]]] = []

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            seen.append((path, [each.name for each in path.iterdir()]))

    monkeypatch.setattr(os, "fsync", synced)
    name = await Outbox(tmp_path).put(report(1))
    assert seen == [(tmp_path, [name])]


def test_only_one_process_owns_an_identity(tmp_path: Path) -> None:
    first, second = (ClaimJournal(tmp_path, "worker/../1") for _ in range(2))
    other = ClaimJournal(tmp_path, "worker-2")
    assert first.acquire() and first.acquire()
    assert not second.acquire()
    assert other.acquire()
    first.release()
    assert second.acquire()
    for journal in (first, second, other):
        journal.release()


async def test_a_damaged_journal_is_no_reason_to_stop(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    await journal.start(HeldJob(ClaimedJob("job-0", {})))
    (held,) = (tmp_path / "claims").glob("*.held")
    held.write_text("{")
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"
    assert "claim journal unreadable" in caplog.text


async def test_no_secret_reaches_the_logs(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.add_job("job-1")
    fake.plan("claim", answer(503), answer(200, b"junk"))
    fake.plan("progress", answer(422))
    fake.plan("final", answer(500), close())
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
    extras = " ".join(str(vars(record)) for record in caplog.records)
    for secret in (fake.api_key, "video-secret", "audio-secret"):
        assert secret not in caplog.text
        assert secret not in extras
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# Everything at once ------------------------------------------------------------------------------


async def test_every_job_ends_once_whatever_the_network_does(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Two workers, 30 jobs, a third of all calls spoilt at random; jobs fail, crash, repeat."""
    chance = random.Random(1)
    faults = [answer(500), answer(429), close(), cut_off(), lost_answer(), answer(200, b"junk")]
    for kind in ("claim", "progress", "final", "heartbeat"):
        # Junk with 200 counts as an accepted report: by contract the status alone decides.
        usable = [f for f in faults if not (kind == "final" and f.status == 200 and not f.is_cut)]
        for _ in range(300):
            spoilt = chance.random() < 0.3
            fake.plan(kind, chance.choice(usable) if spoilt else PASS)

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        on_progress(Progress(Phase.INFERRING, 0.5, 5, 10))
        await asyncio.sleep(0.002)
        number = int(request.musetalk_job_id.removeprefix("job-"))
        if number % 7 == 0:
            raise KeyError("a bug")
        return FAILED if number % 5 == 0 else DONE

    for number in range(1, 31):
        fake.add_job(f"job-{number}")
    async with (
        worker_rig(fake, tmp_path, desk=Desk(job), is_beating=True) as first,
        worker_rig(
            fake, tmp_path, desk=Desk(job), is_beating=True, worker_id="machine-8"
        ) as second,
    ):

        async def work(rig: Rig) -> None:
            async def is_over() -> bool:
                await rig.worker.claim_and_run()
                forgotten = [
                    each.id
                    for each in fake.jobs.values()
                    if each.worker_id is not None
                    and each.status == "running"
                    and each.id not in (first.worker.current_job_id, second.worker.current_job_id)
                    and each.id not in {r.musetalk_job_id for r in first.desk.ran}
                    and each.id not in {r.musetalk_job_id for r in second.desk.ran}
                ]
                for job_id in forgotten:  # its claim's answer was lost: the lease's business
                    fake.hand_out_again(job_id)
                return all(job.status not in ("queued", "running") for job in fake.jobs.values())

            await until_async(is_over, "the jobs have not ended", 120.0)

        await asyncio.gather(work(first), work(second))
        await first.until(lambda: first.outbox.pending() == 0)
    for number in range(1, 31):
        job_seen = fake.jobs[f"job-{number}"]
        is_bad = number % 5 == 0 or number % 7 == 0
        assert job_seen.status == ("failed" if is_bad else "succeeded"), number
        assert len({json.dumps(body) for body in job_seen.accepted}) == 1, number
    assert fake.violations == []
