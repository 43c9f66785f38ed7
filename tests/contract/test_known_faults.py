"""The seven known faults of the system that this one replaces (docs/protocol.md §2), one by one.

Each test rebuilds the circumstances in which the old worker failed. Intervals are scaled down a
hundredfold: a heartbeat every 50 ms instead of 5 s, offline after 300 ms instead of 30 s.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_pipeline.errors import UploadFailed
from orchestrator.client import Timeouts
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from tests.contract.fake_orchestrator import FakeOrchestrator, TlsFiles, answer, garbage, stall
from tests.contract.worker_rig import (
    DONE,
    OPTIONS,
    QUICK,
    WORKER_ID,
    Desk,
    ProgressCallback,
    worker_rig,
)
from tests.waiting import until_async

OFFLINE_S = 0.3


def last_beats(fake: FakeOrchestrator, count: int) -> list[int | None]:
    """Return what the newest heartbeats were answered."""
    return [call.status for call in fake.of("heartbeat")[-count:]]


# 1. A heartbeat answered 4xx/5xx was taken for delivered ------------------------------------------


@pytest.mark.parametrize("status", [401, 404, 422, 429, 500, 503])
async def test_1_a_refused_heartbeat_is_noticed_logged_and_followed_by_the_next(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.WARNING)
    fake.plan("heartbeat", *[answer(status)] * 3)
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 6)
    assert [call.status for call in fake.of("heartbeat")[:6]] == [status] * 3 + [200] * 3
    refused = [r for r in caplog.records if r.getMessage() == "heartbeat not accepted"]
    assert len(refused) == 3
    assert all(vars(record)["status"] == status for record in refused)


# 2. Success without output_url and metrics --------------------------------------------------------


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
@pytest.mark.parametrize(
    "outcome",
    [Success("", {"total_time": 1.0}), Success(DONE.output_url, {}), Success("", {})],
    ids=["no address", "no metrics", "neither"],
)
async def test_2_a_success_that_lacks_anything_is_reported_as_a_failure(
    fake: FakeOrchestrator, tmp_path: Path, outcome: Success, is_buffer: bool
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        return outcome

    job_id = fake.add_job("job-1", **({"buffer_job_id": "buf-1"} if is_buffer else {}))
    async with worker_rig(fake, tmp_path, desk=Desk(job), is_buffer=is_buffer) as rig:
        assert await rig.worker.claim_and_run()
    job_seen = fake.jobs[job_id]
    assert job_seen.status == "failed"
    assert job_seen.error is not None and job_seen.error.startswith("The job ended without")
    assert fake.violations == []  # the fake notes every phantom success


# 3. A connection pool went stale after a TLS fault ------------------------------------------------


async def test_3_heartbeats_recover_from_every_tls_fault_without_a_restart(
    tls: TlsFiles, tmp_path: Path
) -> None:
    with FakeOrchestrator(tls=tls) as fake:

        def break_handshakes() -> None:
            fake.break_handshakes(2)
            fake.drop_connections()

        def restart() -> None:
            fake.go_away()
            fake.come_back()

        async with worker_rig(fake, tmp_path, is_beating=True, tls=tls) as rig:
            for break_it in (
                lambda: fake.plan("heartbeat", garbage(), garbage()),
                break_handshakes,
                fake.drop_connections,
                restart,
            ):
                await asyncio.to_thread(break_it)
                seen = len(fake.of("heartbeat"))
                await rig.until(
                    lambda n=seen: (  # type: ignore[misc]
                        len(fake.of("heartbeat")) >= n + 4 and last_beats(fake, 2) == [200, 200]
                    )
                )
            # Claims and reports have a pool of their own, and recover as well.
            fake.plan("claim", garbage())
            fake.plan("final", garbage())
            fake.add_job("job-1")
            assert await rig.worker.claim_and_run()
            assert fake.jobs["job-1"].status == "succeeded"
        assert fake.violations == []


# 4. Heartbeats stopped while a long job ran -------------------------------------------------------


async def test_4_heartbeats_go_on_although_a_job_blocks_the_loop(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        seen = len(fake.of("heartbeat"))
        # The fault itself: this thread waits, the loop stands still. It ends with the fifth beat
        # that arrives meanwhile, or fails the job after 20 s without.
        fake.wait_until(lambda: len(fake.of("heartbeat")) >= seen + 5)
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job), is_beating=True) as rig:
        await rig.until(lambda: len(fake.of("heartbeat")) >= 1)
        assert await rig.worker.claim_and_run()
    busy = [call for call in fake.of("heartbeat") if call.body["current_job_id"] == "job-1"]
    assert len(busy) >= 4  # the first of the five may have been on its way before the claim
    assert fake.jobs["job-1"].error is None
    assert fake.jobs["job-1"].status == "succeeded"


# 5. A client timeout killed long jobs, and the job then ran twice ---------------------------------


async def test_5_a_job_longer_than_every_timeout_runs_once_to_its_end(tmp_path: Path) -> None:
    # A claim whose answer comes late is another test's: here it may take as long as it likes.
    timeouts = Timeouts(0.3, 0.3, 20.0, 0.3, 0.3)
    options = replace(OPTIONS, report_wait_s=0.1, cancel_wait_s=0.1, progress_repeat_s=0.05)

    with FakeOrchestrator() as fake:

        async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
            await asyncio.sleep(5 * 0.3)
            seen = len(fake.of("heartbeat"))
            await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("heartbeat")) > seen + 1)
            return DONE

        fake.add_job("job-1")
        desk = Desk(job)
        async with worker_rig(
            fake, tmp_path, desk=desk, options=options, timeouts=timeouts, is_beating=True
        ) as rig:
            assert await rig.worker.claim_and_run()
            await rig.until(lambda: fake.jobs["job-1"].status == "succeeded")
            assert not await rig.worker.claim_and_run()
        assert len(desk.ran) == 1
        assert desk.cancelled == []
        assert fake.jobs["job-1"].claims == 1


# 6. An upload without a timeout hung for ever -----------------------------------------------------


async def test_6_an_upload_that_hangs_ends_with_its_deadline_and_is_reported(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """The deadline is the storage's; here: its error becomes the report, and the worker goes on."""

    async def upload_that_hangs() -> None:
        await asyncio.Event().wait()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        on_progress(Progress(Phase.UPLOADING, 0.95, 100, 100))
        try:
            async with asyncio.timeout(0.1):
                await upload_that_hangs()
        except TimeoutError as exc:
            raise UploadFailed("Upload failed: it did not finish within 300 s.") from exc
        return DONE

    fake.add_job("job-1")
    desk = Desk(job)
    async with worker_rig(fake, tmp_path, desk=desk, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
        assert fake.jobs["job-1"].error == "Upload failed: it did not finish within 300 s."
        desk.job = None
        fake.add_job("job-2")
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-2"].status == "succeeded"


async def test_6_a_report_that_hangs_does_not_hold_the_worker_for_ever(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.always("final", stall(60.0))
    options = replace(OPTIONS, report_wait_s=0.2)
    timeouts = replace(QUICK, report_s=0.5)
    fake.add_job("job-1")
    fake.add_job("job-2")
    async with worker_rig(fake, tmp_path, options=options, timeouts=timeouts) as rig:
        assert await rig.worker.claim_and_run()
        assert await rig.worker.claim_and_run()
        fake.always("final", None)
        await rig.until(lambda: rig.outbox.pending() == 0)
    assert [job.status for job in fake.jobs.values()] == ["succeeded"] * 2


# 7. A failed job's error arrived as `HTTP 500: <body>` --------------------------------------------


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
@pytest.mark.parametrize(
    ("message", "status_code"),
    [
        ("Download failed: 404 Not Found", 422),
        ("A replica was lost or refused the call (ActorDiedError).", 500),
        ('Größe "0 × 0" ist kein Bild\n', 422),
    ],
    ids=["input", "worker", "text"],
)
async def test_7_the_jobs_own_error_message_is_what_arrives(
    fake: FakeOrchestrator, tmp_path: Path, message: str, status_code: int, is_buffer: bool
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        return Failure(
            error_type="media_error",
            error_message=message,
            code="download_failed",
            stage="download",
            retryable=False,
            status_code=status_code,
            details={"url": "https://media.example/video.mp4"},
            stack_trace="Traceback (most recent call last): …",
        )

    job_id = fake.add_job("job-1", **({"buffer_job_id": "buf-1"} if is_buffer else {}))
    async with worker_rig(fake, tmp_path, desk=Desk(job), is_buffer=is_buffer) as rig:
        assert await rig.worker.claim_and_run()
    (report,) = fake.jobs[job_id].accepted
    assert (report["status"], report["error"]) == ("failed", message)
    assert "Traceback" not in json.dumps(report)
    assert fake.violations == []


async def test_the_fake_returns_the_job_of_a_silent_worker(tmp_path: Path) -> None:
    """What the tests above lean on: silence is noticed, and the job goes to somebody else."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.Event().wait()
        return DONE

    with FakeOrchestrator(offline_after_s=OFFLINE_S) as fake:
        fake.add_job("job-1")
        options = replace(OPTIONS, cancel_wait_s=0.1)
        async with (
            worker_rig(fake, tmp_path / "a", desk=Desk(job), options=options) as silent,
            worker_rig(fake, tmp_path / "b", worker_id="machine-8", is_beating=True) as other,
        ):
            lost = asyncio.create_task(silent.worker.claim_and_run())
            await silent.until(lambda: bool(silent.desk.ran))
            await silent.until(lambda: fake.is_offline(WORKER_ID))
            await until_async(other.worker.claim_and_run, "the job was not handed out again")
            assert await lost  # its progress was answered 409
            assert silent.desk.cancelled == ["job-1"]
        job_seen = fake.jobs["job-1"]
        assert (job_seen.status, job_seen.worker_id) == ("succeeded", "machine-8")
        assert (job_seen.claims, job_seen.requeues) == (2, 1)
