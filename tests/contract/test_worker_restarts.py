"""Kills, restarts and draining of a worker, and its heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_pipeline import files
from orchestrator.client import ClaimedJob
from serve_app.contract.outcomes import Outcome
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.heartbeat import next_due
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.worker import MAX_STARTS
from tests.contract.fake_orchestrator import (
    FakeOrchestrator,
    answer,
    late_answer,
    stall,
)
from tests.contract.worker_rig import (
    DONE,
    OPTIONS,
    QUICK,
    WORKER_ID,
    Desk,
    ProgressCallback,
    last_error,
    worker_rig,
)
from tests.waiting import until_async

ROOT = Path(__file__).resolve().parents[2]


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
