"""What a worker tells of a running job, and what it makes of the answers (mends 0, 1.7 and 1.8)."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.client import FinalReport
from orchestrator.errors import JobUnknown
from serve_app.contract.outcomes import Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.fleet.outbox import UNKNOWN_S, Outbox
from tests.contract.fake_orchestrator import PASS, FakeOrchestrator, Fault, answer, close, stall
from tests.contract.worker_rig import DONE, OPTIONS, QUICK, Desk, ProgressCallback, worker_rig

ALL_PHASES = ["preparing", "downloading", "inferring", "encoding", "uploading"]
ONE_BY_ONE = replace(OPTIONS, progress_interval_s=0.01, progress_repeat_s=0.02)


def tell_all(on_progress: ProgressCallback) -> None:
    """Go through every phase at once."""
    on_progress(Progress(Phase.DOWNLOADING, 0.0))
    on_progress(Progress(Phase.INFERRING, 0.05, 0, 100))
    on_progress(Progress(Phase.INFERRING, 0.5, 50, 100))
    on_progress(Progress(Phase.ENCODING, 0.9, 100, 100))
    on_progress(Progress(Phase.UPLOADING, 0.95, 100, 100))


def sent(fake: FakeOrchestrator, job_id: str) -> list[str]:
    """Return the phases that were accepted, each once for each time that it was entered."""
    return [phase for phase, _ in itertools.groupby(r["phase"] for r in fake.jobs[job_id].progress)]


# Every change of phase arrives -------------------------------------------------------------------


async def test_every_phase_arrives_in_order_however_short(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 0: a job that is over before the first report was sent; its end comes last.

    Once the phases that waited are sent, the end of the job waits for nothing.
    """

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        tell_all(on_progress)
        return DONE

    fake.add_job("job-1")
    options = replace(
        OPTIONS, progress_interval_s=3600.0, progress_repeat_s=7200.0, progress_close_s=3600.0
    )
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=options) as rig:
        async with asyncio.timeout(60.0):
            assert await rig.worker.claim_and_run()
    assert sent(fake, "job-1") == ALL_PHASES
    assert [call.kind for call in fake.calls][-1] == "final"
    inferring = [r for r in fake.jobs["job-1"].progress if r["phase"] == "inferring"]
    assert [report["metrics"]["frames_done"] for report in inferring] == [100]  # its newest state
    assert fake.violations == []


@pytest.mark.parametrize("fault", [answer(503), close(), answer(429)], ids=["503", "cut", "429"])
async def test_a_phase_that_did_not_get_through_is_sent_again(
    fake: FakeOrchestrator, tmp_path: Path, fault: Fault
) -> None:
    """Mend 0: in its place, before those that came after."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        tell_all(on_progress)
        await asyncio.to_thread(fake.wait_until, lambda: sent(fake, "job-1")[-1:] == ["uploading"])
        return DONE

    fake.add_job("job-1")
    fake.plan("progress", PASS, fault, PASS, fault, fault)
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=ONE_BY_ONE) as rig:
        assert await rig.worker.claim_and_run()
    assert sent(fake, "job-1") == ALL_PHASES


async def test_an_orchestrator_that_does_not_answer_is_not_told_everything(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 0: the end of a job waits for one report that is on its way, not for all that wait."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        tell_all(on_progress)
        return DONE

    fake.add_job("job-1")
    fake.always("progress", stall(60.0))
    timeouts = replace(QUICK, progress_s=0.2)
    async with worker_rig(fake, tmp_path, desk=Desk(job), timeouts=timeouts) as rig:
        assert await rig.worker.claim_and_run()
    assert len(fake.of("progress")) <= 2
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_job_that_starts_again_and_again_keeps_a_bounded_number_of_phases(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        for _ in range(1000):
            tell_all(on_progress)
        return DONE

    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job)) as rig:
        assert await rig.worker.claim_and_run()
    assert len(fake.of("progress")) < 40
    assert sent(fake, "job-1")[-1] == "uploading"


async def test_a_buffer_job_is_told_as_the_predecessor_told_it(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.7: 0.05 downloading, 0.1 inference, inferring with the frames; to the main path."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        tell_all(on_progress)
        return DONE

    fake.add_job("job-1", buffer_job_id="buf-1")
    async with worker_rig(fake, tmp_path, desk=Desk(job), is_buffer=True) as rig:
        assert await rig.worker.claim_and_run()
    assert {call.path for call in fake.of("progress")} == {"/internal/jobs/job-1/progress"}
    reports = fake.jobs["buf-1"].progress
    told = [(r["phase"], r["progress"], r["metrics"]) for r in reports]
    counts = {"frames_done": 100, "frames_total": 100}
    assert told == [
        ("downloading", 0.05, None),
        ("inference", 0.1, None),
        ("inferring", 0.5, counts),
        ("encoding", 0.9, None),
        ("uploading", 0.95, None),
    ]
    keys = {"status", "progress", "phase", "worker_id", "metrics", "error"}
    assert {frozenset(r) for r in reports} == {frozenset(keys | {"config_label", "batch_size"})}
    assert fake.violations == []


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_frames_are_told_although_all_are_drawn_at_once(
    fake: FakeOrchestrator, tmp_path: Path, is_buffer: bool
) -> None:
    """Mend 1.7: a job of one segment is past its drawing when its frames are counted."""

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        on_progress(Progress(Phase.DOWNLOADING, 0.0))
        on_progress(Progress(Phase.INFERRING, 0.05, 0, 60))
        on_progress(Progress(Phase.ENCODING, 0.9, 60, 60))
        return DONE

    key = fake.add_job("job-1", **({"buffer_job_id": "buf-1"} if is_buffer else {}))
    async with worker_rig(fake, tmp_path, desk=Desk(job), is_buffer=is_buffer) as rig:
        assert await rig.worker.claim_and_run()
    drawn = [r["metrics"] for r in fake.jobs[key].progress if r["phase"] == "inferring"]
    assert drawn[-1] == {"frames_done": 60, "frames_total": 60}
    assert sent(fake, key)[-1] == "encoding"
    assert fake.violations == []


# 404, 409, 410 -----------------------------------------------------------------------------------


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def _until_answered(fake: FakeOrchestrator, count: int) -> None:
    """Wait until that many reports were answered, and the answer to the last but one was read."""
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= count)


@pytest.mark.parametrize("count", [1, 2])
async def test_one_or_two_404_do_not_end_a_job(
    fake: FakeOrchestrator, tmp_path: Path, count: int
) -> None:
    """Mend 1.8: the real orchestrator has been seen to answer so for a live job."""
    clock = Hand()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        clock.now += 3600.0
        await _until_answered(fake, count + 4)
        return DONE

    fake.add_job("job-1")
    fake.plan("progress", *[answer(404)] * count)
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=ONE_BY_ONE, clock=clock) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.cancelled == []
    assert fake.jobs["job-1"].status == "succeeded"


async def test_many_404_within_half_a_minute_do_not_end_a_job(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.8: three are not enough, they must be 30 s apart."""
    clock = Hand()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await _until_answered(fake, 10)
        clock.now += 29.9
        await _until_answered(fake, 20)
        return DONE

    fake.add_job("job-1")
    fake.always("progress", answer(404))
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=ONE_BY_ONE, clock=clock) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.cancelled == []
    assert fake.jobs["job-1"].status == "succeeded"


@pytest.mark.parametrize("between", [answer(503), answer(200), close()], ids=["503", "200", "cut"])
async def test_404_that_are_not_in_a_row_do_not_end_a_job(
    fake: FakeOrchestrator, tmp_path: Path, between: Fault
) -> None:
    """Mend 1.8: another answer, or none, and the count begins again."""
    clock = Hand()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        for number in range(1, 13):
            await _until_answered(fake, number)
            clock.now += 60.0
        return DONE

    fake.add_job("job-1")
    fake.plan("progress", *[answer(404), answer(404), between] * 10)
    async with worker_rig(fake, tmp_path, desk=Desk(job), options=ONE_BY_ONE, clock=clock) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.desk.cancelled == []
    assert fake.jobs["job-1"].status == "succeeded"


async def test_404_for_half_a_minute_ends_a_job_without_a_report(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.8: three in a row, the last at least 30 s after the first."""
    clock = Hand()
    stopped = asyncio.Event()
    desk = Desk()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await _until_answered(fake, 4)
        assert not desk.cancelled
        clock.now += 30.0
        await stopped.wait()
        return DONE

    async def cancel(job_id: str) -> None:
        desk.cancelled.append(job_id)
        stopped.set()

    desk.job, desk.cancel = job, cancel  # type: ignore[method-assign]
    fake.add_job("job-1")
    fake.always("progress", answer(404))
    async with worker_rig(fake, tmp_path, desk=desk, options=ONE_BY_ONE, clock=clock) as rig:
        assert await rig.worker.claim_and_run()
        assert desk.cancelled == ["job-1"]
        assert rig.worker.current_job_id is None
        assert not await rig.worker.claim_and_run()  # nor is it resumed
    assert fake.of("final") == []


async def test_a_final_report_that_is_answered_404_is_sent_again(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.8."""
    fake.add_job("job-1")
    fake.plan("final", answer(404), answer(404), answer(404), answer(404))
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
    assert len(fake.of("final")) == 5
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_final_report_that_nobody_knows_is_given_up_after_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mend 1.8: also by another process than the one that stored it."""
    now = 1_800_000_000.0
    await Outbox(tmp_path, clock=lambda: now).put(FinalReport("job-1", "/p", "{}"))
    outbox = Outbox(tmp_path, clock=lambda: now)

    async def refuse(report: FinalReport) -> None:
        raise JobUnknown("no such job", status_code=404)

    now += UNKNOWN_S - 1
    assert not await outbox.deliver_round(refuse)
    assert outbox.pending() == 1
    now += 2
    assert await outbox.deliver_round(refuse)
    assert outbox.pending() == 0
    assert "final report refused for good" in caplog.text
