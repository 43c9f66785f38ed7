"""One worker against an orchestrator over real sockets: claim, run, report."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from musetalk_pipeline.errors import DownloadFailed
from serve_app.contract.outcomes import Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from tests.contract.fake_orchestrator import (
    FakeOrchestrator,
    answer,
    late_effect,
    stall,
)
from tests.contract.worker_rig import (
    DONE,
    FAILED,
    OPTIONS,
    QUICK,
    Desk,
    ProgressCallback,
    has_reports,
    worker_rig,
)
from tests.waiting import turns

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
