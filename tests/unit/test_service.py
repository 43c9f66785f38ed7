"""Ending jobs: what is cancelled, what is done, and what starts again."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.options import JobOptions
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.graph.transfers import Assignment, Finished
from serve_app.jobs.housekeeping import SweepTiming
from serve_app.jobs.job import Origin, Verdict
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobService, JobTiming


class SlowDriver:
    """Stays in one phase until told to go on; the graph is not what is tested here."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.go_on = asyncio.Event()
        self.started = asyncio.Event()
        self.ending = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self, assignment: Assignment, report: Callable[[Progress], None]) -> Finished:
        report(Progress(self.phase, 0.5, 5, 10))
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ending.set()
            await self.may_end.wait()
            raise
        return Finished("http://h/files/a.mp4", {"stage_times": {}}, ("Two faces were seen.",))


QUICK = JobTiming(beat_s=0.02)


@pytest.fixture
def registry(tmp_path):
    registry = CountingRegistry(tmp_path / "jobs.sqlite3")
    yield registry
    registry.close()


def request(job_id: str = "a") -> JobRequest:
    return JobRequest(
        musetalk_job_id=job_id, video_url="https://h/v.mp4", audio_url="https://h/a.wav"
    )


class CountingRegistry(JobRegistry):
    """Wakes whoever waits for the next beat."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.beats = threading.Semaphore(0)

    def beat(self, *args: Any, **kwargs: Any) -> Verdict:
        try:
            return super().beat(*args, **kwargs)
        finally:
            self.beats.release()

    async def next_beats(self, count: int) -> None:
        """Wait until that many more beats have been written."""
        for _ in range(count):
            assert await asyncio.to_thread(self.beats.acquire, timeout=10)


@pytest.mark.parametrize(
    ("phase", "status"), [(Phase.INFERRING, "cancelled"), (Phase.UPLOADING, "succeeded")]
)
async def test_a_job_is_cancelled_until_its_upload_begins(registry, phase, status):
    driver = SlowDriver(phase)
    service = JobService(registry, driver, QueueSettings(), JobOptions(), timing=QUICK)
    await service.submit(request(), Origin.ASYNC)
    running = asyncio.create_task(service.run_next())
    await driver.started.wait()
    registry.cancel("a")
    if phase is Phase.UPLOADING:
        while registry.beats.acquire(blocking=False):
            pass
        await registry.next_beats(3)  # the second of them found that the job is cancelled
    else:
        await driver.ending.wait()
    driver.go_on.set()
    await running
    assert registry.get("a").status == status


async def test_what_the_run_decided_reaches_the_outcome(registry):
    """Mends 2.5 and 2.9: what became of an odd size, and which of two faces speaks."""
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    service = JobService(registry, driver, QueueSettings(), JobOptions())
    await service.submit(request(), Origin.ASYNC)
    await service.run_next()
    assert tuple(registry.get("a").outcome.warnings) == ("Two faces were seen.",)


async def test_a_client_that_comes_back_while_its_job_is_being_ended_gets_it_done(registry):
    driver = SlowDriver(Phase.INFERRING)
    driver.may_end.clear()
    timing = replace(QUICK, sweeps=SweepTiming(sweep_s=1e9))
    service = JobService(registry, driver, QueueSettings(), JobOptions(), timing=timing)
    assert await service.run_next() is None  # has swept, so the job is taken without a client
    await service.submit(request(), Origin.SYNC)
    registry.keep_alive(["a"], -1.0)
    running = asyncio.create_task(service.run_next())
    await driver.ending.wait()
    await service.submit(request(), Origin.SYNC)
    driver.may_end.set()
    await running
    assert registry.get("a").status == "queued"
    driver.go_on.set()
    await service.run_next()
    assert registry.get("a").status == "succeeded"


async def test_a_queued_job_is_taken_at_once_if_it_was_submitted_here(registry):
    """An idle slot does not read the registry at every poll."""
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    timing = replace(QUICK, idle_poll_s=1e9)
    service = JobService(registry, driver, QueueSettings(), JobOptions(), timing=timing)
    assert await service.run_next() is None
    registry.submit(request(), Origin.ASYNC, 10)  # as another process does
    assert await service.run_next() is None
    await service.submit(request("b"), Origin.ASYNC)
    assert [(await service.run_next()).id for _ in range(2)] == ["a", "b"]


async def test_a_queued_job_of_another_process_is_taken_at_the_next_poll(registry):
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    timing = replace(QUICK, idle_poll_s=0.0)
    service = JobService(registry, driver, QueueSettings(), JobOptions(), timing=timing)
    assert await service.run_next() is None
    registry.submit(request(), Origin.ASYNC, 10)
    assert await service.run_next() is not None


async def test_claimed_and_cancelled_jobs_are_forgotten_like_any_other(registry):
    """A worker that only claims never ends a job of its own queue, yet its registry is bounded."""
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    timing = replace(QUICK, sweeps=SweepTiming(sweep_s=0.0, forget_s=0.0))
    queue = QueueSettings(keep_finished=10)
    service = JobService(registry, driver, queue, JobOptions(), timing=timing)
    for n in range(15):
        await service.run_claimed(request(f"claimed-{n}"), lambda progress: None)
        await service.submit(request(f"cancelled-{n}"), Origin.ASYNC)
        await service.cancel(f"cancelled-{n}")
    assert await service.run_next() is None
    assert len(registry.page(None, 100).jobs) == 10


async def test_a_job_ends_with_the_last_of_its_claims(registry):
    """An orchestrator may hand a job out again, and then refuses the reports of the first claim."""
    driver = SlowDriver(Phase.INFERRING)
    service = JobService(registry, driver, QueueSettings(), JobOptions(), timing=QUICK)
    claims = [
        asyncio.create_task(service.run_claimed(request(), lambda progress: None)) for _ in range(2)
    ]
    await driver.started.wait()
    await service.revoke_claim("a")
    while registry.beats.acquire(blocking=False):
        pass
    await registry.next_beats(3)
    assert registry.get("a").status == "running"
    await service.revoke_claim("a")
    outcomes = await asyncio.gather(*claims)
    assert [outcome.cancelled for outcome in outcomes] == [True, True]


async def test_a_job_that_was_not_cancelled_is_not_reported_as_cancelled(registry):
    """409 would count as done with Salad's queue; the caller has to try again."""

    class CutOff:
        async def run(self, work, report):
            raise asyncio.CancelledError

    service = JobService(registry, CutOff(), QueueSettings(), JobOptions())
    await service.submit(request(), Origin.ASYNC)
    await service.run_next()
    job = registry.get("a")
    assert (job.status, job.outcome.status_code, job.outcome.retryable) == ("failed", 500, True)
