"""Ending jobs: what is cancelled, what is done, and what starts again."""

import asyncio
from collections.abc import Callable

import pytest

from musetalk_pipeline.options import JobOptions
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.graph.transfers import Assignment, Finished
from serve_app.jobs import attempt as attempt_module
from serve_app.jobs import service as service_module
from serve_app.jobs.registry import JobRegistry, Origin
from serve_app.jobs.service import JobService


class SlowDriver:
    """Stays in one phase until told to go on; the graph is not what is tested here."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.go_on = asyncio.Event()
        self.starts = 0

    async def run(self, work: Assignment, report: Callable[[Progress], None]) -> Finished:
        self.starts += 1
        report(Progress(self.phase, 0.5, 5, 10))
        await self.go_on.wait()
        return Finished("http://h/files/a.mp4", {"stage_times": {}}, ("Two faces were seen.",))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attempt_module, "BEAT_S", 0.02)


@pytest.fixture
def registry(tmp_path):
    registry = JobRegistry(tmp_path / "jobs.sqlite3")
    yield registry
    registry.close()


def request() -> JobRequest:
    return JobRequest(musetalk_job_id="a", video_url="https://h/v.mp4", audio_url="https://h/a.wav")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("phase", "status"), [(Phase.INFERRING, "cancelled"), (Phase.UPLOADING, "succeeded")]
)
async def test_a_job_is_cancelled_until_its_upload_begins(registry, phase, status):
    driver = SlowDriver(phase)
    service = JobService(registry, driver, QueueSettings(), JobOptions())
    await service.submit(request(), Origin.ASYNC)
    work = asyncio.create_task(service.work())
    await until(lambda: driver.starts == 1)
    registry.cancel("a")
    await asyncio.sleep(0.2)  # several beats
    driver.go_on.set()
    await work
    assert registry.get("a").status == status


async def test_what_the_run_decided_reaches_the_outcome(registry):
    """Mends 2.5 and 2.9: what became of an odd size, and which of two faces speaks."""
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    service = JobService(registry, driver, QueueSettings(), JobOptions())
    await service.submit(request(), Origin.ASYNC)
    await service.work()
    assert tuple(registry.get("a").outcome.warnings) == ("Two faces were seen.",)


async def test_a_client_that_comes_back_while_its_job_is_being_ended_gets_it_done(registry):
    driver = SlowDriver(Phase.INFERRING)
    service = JobService(registry, driver, QueueSettings(), JobOptions())
    await service.submit(request(), Origin.SYNC)
    registry.want(["a"], -1.0)

    ending = asyncio.Event()
    run = driver.run

    async def ends_slowly(work, report):
        try:
            return await run(work, report)
        except asyncio.CancelledError:
            ending.set()
            await asyncio.sleep(0.1)
            raise

    # Taken before the sweep sees that nobody waits.
    async def no_sweep():
        pass

    service._sweep = no_sweep
    driver.run = ends_slowly
    work = asyncio.create_task(service.work())
    await ending.wait()
    await service.submit(request(), Origin.SYNC)
    await work
    assert registry.get("a").status == "queued"
    driver.go_on.set()
    await service.work()
    assert registry.get("a").status == "succeeded"


async def test_idle_slots_ask_the_registry_now_and_then(registry, monkeypatch):
    """What came in here is taken at once; what another process left, a moment later."""
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    service = JobService(registry, driver, QueueSettings(), JobOptions())
    monkeypatch.setattr(service_module, "IDLE_S", 1e9)
    assert await service.work() is None
    registry.submit(request(), Origin.ASYNC, 10)  # as another process does
    assert await service.work() is None
    monkeypatch.setattr(service_module, "IDLE_S", 0.0)
    assert await service.work() is not None
    monkeypatch.setattr(service_module, "IDLE_S", 1e9)
    assert await service.work() is None
    await service.submit(request().model_copy(update={"musetalk_job_id": "b"}), Origin.ASYNC)
    assert (await service.work()).id == "b"


async def test_claimed_and_cancelled_jobs_are_forgotten_like_any_other(registry, monkeypatch):
    """A worker that only claims never ends a job of its own queue, yet its registry is bounded."""
    monkeypatch.setattr(service_module, "SWEEP_S", 0.0)
    monkeypatch.setattr(service_module, "FORGET_S", 0.0)
    driver = SlowDriver(Phase.INFERRING)
    driver.go_on.set()
    service = JobService(registry, driver, QueueSettings(keep_finished=10), JobOptions())
    for n in range(15):
        named = request().model_copy(update={"musetalk_job_id": f"claimed-{n}"})
        await service.run_claimed(named, lambda progress: None)
        await service.submit(
            named.model_copy(update={"musetalk_job_id": f"cancelled-{n}"}), Origin.ASYNC
        )
        await service.cancel(f"cancelled-{n}")
    assert await service.work() is None
    assert len(registry.page(None, 100).jobs) == 10


async def test_a_job_that_nobody_cancelled_is_not_told_to_be_cancelled(registry):
    """409 would count as done with Salad's queue; the caller has to try again."""

    class CutOff:
        async def run(self, work, report):
            raise asyncio.CancelledError

    service = JobService(registry, CutOff(), QueueSettings(), JobOptions())
    await service.submit(request(), Origin.ASYNC)
    await service.work()
    job = registry.get("a")
    assert (job.status, job.outcome.status_code, job.outcome.retryable) == ("failed", 500, True)
