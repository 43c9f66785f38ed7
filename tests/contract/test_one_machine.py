"""Mend 1.5: one machine is one worker, whatever the number of jobs at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.client import ClaimedJob
from serve_app.contract.outcomes import Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.polling import PollingRules
from tests.contract.fake_orchestrator import FakeOrchestrator, answer
from tests.contract.worker_rig import (
    DONE,
    OPTIONS,
    WORKER_ID,
    Desk,
    ProgressCallback,
    Rig,
    worker_rig,
)
from tests.waiting import turns

TWO = replace(OPTIONS, capacity=2)


class Gate:
    """Lets jobs end one by one."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = {}

    async def job(self, request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await self.open.setdefault(request.musetalk_job_id, asyncio.Event()).wait()
        return DONE

    def let(self, job_id: str) -> None:
        self.open.setdefault(job_id, asyncio.Event()).set()


def beats_with(fake: FakeOrchestrator, *job_ids: str) -> bool:
    """Whether the newest heartbeat names exactly these jobs."""
    beats = fake.of("heartbeat")
    return bool(beats) and {j["musetalk_job_id"] for j in beats[-1].body["jobs"]} == set(job_ids)


async def works(rig: Rig, count: int) -> list[asyncio.Task[bool]]:
    """Begin `count` calls, each of which has its job before the next begins."""
    calls = []
    for number in range(1, count + 1):
        calls.append(asyncio.create_task(rig.worker.claim_and_run()))
        await rig.until(lambda n=number: len(rig.desk.ran) >= n)  # type: ignore[misc]
    return calls


async def test_two_jobs_run_under_one_identity_and_every_heartbeat_names_both(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    gate = Gate()
    for name in ("job-1", "job-2", "job-3"):
        fake.add_job(name)
    async with worker_rig(fake, tmp_path, desk=Desk(gate.job), options=TWO, is_beating=True) as rig:
        first, second = await works(rig, 2)
        assert not await rig.worker.claim_and_run()  # no room: nothing is claimed
        await rig.until(lambda: beats_with(fake, "job-1", "job-2"))
        beat = fake.of("heartbeat")[-1].body
        assert (beat["status"], beat["current_job_id"]) == ("busy", "job-1")
        gate.let("job-1")
        assert await first
        await rig.until(lambda: beats_with(fake, "job-2"))
        beat = fake.of("heartbeat")[-1].body
        assert (beat["status"], beat["current_job_id"]) == ("busy", "job-2")
        third = asyncio.create_task(rig.worker.claim_and_run())  # there is room again
        await rig.until(lambda: beats_with(fake, "job-2", "job-3"))
        gate.let("job-2")
        gate.let("job-3")
        assert await second and await third
        await rig.until(lambda: beats_with(fake))
    assert {job.worker_id for job in fake.jobs.values()} == {WORKER_ID}
    assert {job.status for job in fake.jobs.values()} == {"succeeded"}
    paths = {call.path for call in fake.calls if call.kind in ("register", "heartbeat")}
    assert {path.split("/")[4] for path in paths} == {WORKER_ID}
    assert fake.of("register")[0].body["capacity"] == 2
    assert len(fake.of("register")) == 1
    assert fake.violations == []


async def test_a_buffer_worker_sends_its_capacity(fake: FakeOrchestrator, tmp_path: Path) -> None:
    async with worker_rig(fake, tmp_path, options=TWO, is_buffer=True, is_beating=True) as rig:
        await rig.until(lambda: bool(fake.of("heartbeat")))
    assert fake.of("heartbeat")[0].body["capacity"] == 2


async def test_one_call_claims_at_a_time(fake: FakeOrchestrator, tmp_path: Path) -> None:
    """Calls that find another one asking go away, so that one machine asks like one."""
    held = asyncio.Event()
    desk = Desk()

    async def can_run() -> bool:
        await held.wait()
        return True

    desk.can_run = can_run  # type: ignore[method-assign]
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path, desk=desk, options=TWO) as rig:
        asking = asyncio.create_task(rig.worker.claim_and_run())
        await turns()
        assert not await rig.worker.claim_and_run()
        held.set()
        assert await asking
    assert len(fake.of("claim")) == 1


async def test_claims_without_a_job_are_an_interval_apart(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """However often the calls come; after a job the next claim follows at once."""
    now = 100.0
    options = replace(TWO, claim_interval_s=5.0)
    async with worker_rig(fake, tmp_path, options=options, clock=lambda: now) as rig:
        for _ in range(5):
            assert not await rig.worker.claim_and_run()
        assert len(fake.of("claim")) == 1
        fake.add_job("job-1")
        now = 104.9
        assert not await rig.worker.claim_and_run()
        now = 105.0
        assert await rig.worker.claim_and_run()
        assert not await rig.worker.claim_and_run()
    assert len(fake.of("claim")) == 3


async def test_all_jobs_of_a_dead_process_are_resumed(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    assert journal.acquire()
    for name in ("job-1", "job-2"):
        fake.add_job(name)
        fake._hand_out(WORKER_ID)  # what the dead process had done
        await journal.start(HeldJob(ClaimedJob(name, fake.jobs[name].payload)))
    journal.release()  # as the kernel does
    gate = Gate()
    async with worker_rig(fake, tmp_path, desk=Desk(gate.job), options=TWO, is_beating=True) as rig:
        await rig.until(lambda: beats_with(fake, "job-1", "job-2"))
        calls = await works(rig, 2)
        gate.let("job-1")
        gate.let("job-2")
        assert all([await call for call in calls])
        assert not await rig.worker.claim_and_run()
        assert [request.musetalk_job_id for request in rig.desk.ran] == ["job-1", "job-2"]
        assert journal.read() == ()
    assert [job.status for job in fake.jobs.values()] == ["succeeded"] * 2
    assert [job.claims for job in fake.jobs.values()] == [1, 1]


async def test_a_left_job_that_has_no_place_yet_is_in_every_heartbeat(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """docs/protocol.md §9: a job that is not listed twice goes elsewhere and is done twice."""
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    for name in ("job-1", "job-2"):
        fake.add_job(name)
        fake._hand_out(WORKER_ID)
        await journal.start(HeldJob(ClaimedJob(name, fake.jobs[name].payload)))
    gate = Gate()
    async with worker_rig(fake, tmp_path, desk=Desk(gate.job), is_beating=True) as rig:
        [first] = await works(rig, 1)  # one at a time, as this process is told to
        beats = len(fake.of("heartbeat"))
        await rig.until(lambda: len(fake.of("heartbeat")) >= beats + 3)
        assert beats_with(fake, "job-1", "job-2")
        gate.let("job-1")
        gate.let("job-2")
        assert await first
        assert await rig.worker.claim_and_run()
        await rig.until(lambda: beats_with(fake))
    named = [{each["musetalk_job_id"] for each in c.body["jobs"]} for c in fake.of("heartbeat")]
    assert {"job-1"} not in named
    assert [job.status for job in fake.jobs.values()] == ["succeeded"] * 2


async def test_what_an_older_release_left_is_resumed(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Its journal held one job, under a name without a key."""
    fake.add_job("job-1")
    fake._hand_out(WORKER_ID)
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    await journal.start(HeldJob(ClaimedJob("job-1", fake.jobs["job-1"].payload), key=""))
    [path] = (tmp_path / "claims").glob("*.held")
    assert path.name.count(".") == 1
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"
    assert not path.exists()


async def test_cancelling_one_call_leaves_the_other_job_alone(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    gate = Gate()
    for name in ("job-1", "job-2"):
        fake.add_job(name)
    async with worker_rig(fake, tmp_path, desk=Desk(gate.job), options=TWO) as rig:
        first, second = await works(rig, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.let("job-1")
        assert await rig.worker.claim_and_run()  # resumed, not claimed again
        gate.let("job-2")
        assert await second
    assert [job.status for job in fake.jobs.values()] == ["succeeded"] * 2
    assert len(fake.of("claim")) == 2


async def test_attempts_are_told_apart_when_a_job_is_handed_out_again(tmp_path: Path) -> None:
    """docs/protocol.md §9: the first attempt's reports are refused, the second's are accepted."""
    again = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await again.wait()
        on_progress(Progress(Phase.ENCODING, 0.9))
        return DONE

    with FakeOrchestrator(counts_attempts=True) as fake:
        fake.add_job("job-1")
        options = replace(TWO, cancel_wait_s=0.05)
        async with worker_rig(
            fake, tmp_path, desk=Desk(job), options=options, is_beating=True
        ) as rig:
            [first] = await works(rig, 1)
            fake.hand_out_again("job-1")
            second = asyncio.create_task(rig.worker.claim_and_run())
            await rig.until(lambda: fake.jobs["job-1"].claims == 2)
            assert await first  # stopped by a 409, without a report
            again.set()
            assert await second
        [report] = fake.jobs["job-1"].accepted
        assert (report["status"], report["attempt"]) == ("succeeded", 2)
        assert fake.violations == []


async def test_an_orchestrator_cancels_by_its_answer_to_a_heartbeat(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """docs/protocol.md §9."""
    gate = Gate()
    for name in ("job-1", "job-2"):
        fake.add_job(name)
    options = replace(TWO, cancel_wait_s=0.05)
    async with worker_rig(
        fake, tmp_path, desk=Desk(gate.job), options=options, is_beating=True
    ) as rig:
        first, second = await works(rig, 2)
        fake.heartbeat_answer = {"detail": "ok", "cancel": ["job-2", "unknown"]}
        assert await second
        assert rig.desk.cancelled == ["job-2"]
        gate.let("job-1")
        assert await first
    assert fake.jobs["job-1"].status == "succeeded"
    assert fake.jobs["job-2"].accepted == []


async def test_a_worker_that_is_drained_finishes_and_claims_nothing_more(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """docs/protocol.md §9."""
    gate = Gate()
    fake.add_job("job-1")
    async with worker_rig(
        fake, tmp_path, desk=Desk(gate.job), options=TWO, is_buffer=False, is_beating=True
    ) as rig:
        [first] = await works(rig, 1)
        fake.heartbeat_answer = {"drain": True}
        beats = len(fake.of("heartbeat"))
        await rig.until(lambda: len(fake.of("heartbeat")) >= beats + 3)
        fake.add_job("job-2")
        assert not await rig.worker.claim_and_run()
        gate.let("job-1")
        assert await first
        fake.heartbeat_answer = {"drain": False}
        beats = len(fake.of("heartbeat"))
        await rig.until(lambda: len(fake.of("heartbeat")) >= beats + 3)
        gate.let("job-2")
        assert await rig.worker.claim_and_run()
    assert {job.status for job in fake.jobs.values()} == {"succeeded"}


@pytest.mark.parametrize(
    ("poll_s", "beat_s"), [(0.5, 0.5), (5.0, 5.0), (10.0, 10.0), (60.0, 10.0), (3600.0, 10.0)]
)
def test_heartbeats_do_not_slow_down_with_the_polls(poll_s: float, beat_s: float) -> None:
    """Mend 1.10: the predecessor beats every 10 s whatever POLL_INTERVAL_SEC says."""
    rules = PollingRules("http://o", "k", "main", is_buffer=False, interval_s=poll_s)
    assert rules.heartbeat_interval_s == beat_s


@pytest.mark.parametrize(("poll_s", "beat_s"), [(0.5, 5.0), (7.0, 7.0), (10.0, 10.0), (60.0, 10.0)])
def test_a_buffer_worker_beats_every_5_to_10_s(poll_s: float, beat_s: float) -> None:
    """docs/protocol.md §2: however often it asks for a job."""
    rules = PollingRules("http://o", "k", "main", is_buffer=True, interval_s=poll_s)
    assert rules.heartbeat_interval_s == beat_s


async def test_heartbeats_go_on_between_polls_that_are_far_apart(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mend 1.10: with an hour between two claims."""
    options = replace(OPTIONS, claim_interval_s=3600.0)
    async with worker_rig(fake, tmp_path, options=options, is_beating=True) as rig:
        assert not await rig.worker.claim_and_run()
        await rig.until(lambda: len(fake.of("heartbeat")) >= 4)
        assert not await rig.worker.claim_and_run()
    assert len(fake.of("claim")) == 1


async def test_a_refused_claim_is_no_reason_to_ask_faster(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    fake.always("claim", answer(401))
    options = replace(OPTIONS, claim_interval_s=3600.0)
    async with worker_rig(fake, tmp_path, options=options) as rig:
        for _ in range(3):
            assert not await rig.worker.claim_and_run()
    assert len(fake.of("claim")) == 1
