"""What a worker claims, what it does when a job is cancelled, and how it reports the end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.contract.outcomes import Outcome
from serve_app.contract.requests import JobRequest
from tests.contract.fake_orchestrator import (
    FakeOrchestrator,
    answer,
    close,
    cut_off,
    lost_answer,
    stall,
)
from tests.contract.worker_rig import (
    DONE,
    FAILED,
    OPTIONS,
    QUICK,
    Desk,
    ProgressCallback,
    accept,
    report,
    worker_rig,
)

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
