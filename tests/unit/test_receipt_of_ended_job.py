"""A job that fails, or is cancelled, has a receipt of what it used until then."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.errors import InvalidVideo, StageFailed
from musetalk_pipeline.options import JobOptions
from orchestrator.messages import FailureReport
from serve_app.api.answers import job_body
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Failure
from serve_app.contract.requests import JobRequest
from serve_app.fleet.reported_run import report_of
from serve_app.jobs.job import Origin
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobService, JobTiming
from tests.unit.stage_rig import Stages, running, until


class Worker:
    """A registry, a service and a driver over `stages`."""

    def __init__(self, folder: Path, stages: Stages) -> None:
        self.registry = JobRegistry(folder / "jobs.sqlite3")
        timing = JobTiming(beat_s=0.02)
        self.service = JobService(
            self.registry, stages.driver, QueueSettings(), JobOptions(), timing=timing
        )

    async def start(self) -> asyncio.Task[Any]:
        """Submit a job and begin it."""
        request = JobRequest(musetalk_job_id="a", video_url="https://h/v", audio_url="https://h/a")
        await self.service.submit(request, Origin.ASYNC)
        return asyncio.create_task(self.service.run_next())

    def has_composed(self) -> bool:
        """Return whether the costs of a finished piece are counted, by what is stored of the job.

        The file of the piece is there before they are.
        """
        job = self.registry.get("a")
        assert job is not None
        return "compose" in job.progress.stage_seconds

    def receipt(self, status: str) -> dict[str, Any]:
        """Return the receipt of the job, which has ended so; answers and reports have the same."""
        job = self.registry.get("a")
        assert job is not None and isinstance(job.outcome, Failure)
        assert job.status == status
        shown: dict[str, Any] = job_body(job)["failure"]["receipt"]
        report = report_of(job.outcome, 0.5)
        assert isinstance(report, FailureReport) and report.receipt is not None
        assert json.dumps(shown) == json.dumps(dict(report.receipt))
        assert (shown["finished_s"], shown["usd_per_finished_minute"]) == (0.0, None)
        return shown


class TiredGpu(Stages):
    """All segments but the first fail, when `go_on` is set."""

    async def _call(self, name: str, pool: str, frame: int) -> None:
        if name == "generate" and frame > 0:
            await self.go_on.wait()
            raise StageFailed("The GPU is tired.")
        await super()._call(name, pool, frame)


async def test_a_cancelled_job_has_a_receipt_with_what_was_under_way(tmp_path: Path) -> None:
    stages = Stages(tmp_path, frames=150)
    worker = Worker(tmp_path, stages)
    stages.capacity.follow(running(cpu=1))
    job = await worker.start()
    await until(lambda: len(stages.of("compose")) == 1)
    stages.holds = {"generate"}
    await until(lambda: len(stages.of("generate")) == 2)
    await until(lambda: stages.capacity.scheduler.calls_in_flight() == {"cpu": 1})
    await until(worker.has_composed)
    drawn = len(stages.of("compose"))
    worker.registry.cancel("a")
    async with asyncio.timeout(30):
        await job
    receipt = worker.receipt("cancelled")
    [pool] = receipt["pools"]
    assert receipt["frames"] == pool["frames"]
    assert 50 <= receipt["frames"] <= 50 * drawn
    assert pool["work_s"] > 0.0
    assert receipt["stage_s"]["download"] == 1.0
    assert receipt["retries"]["segments"] >= 1  # the one that was being drawn
    assert receipt["wall_s"] > 0.0


async def test_a_failed_job_has_a_receipt_of_what_was_drawn_and_what_was_lost(
    tmp_path: Path,
) -> None:
    stages = TiredGpu(tmp_path, frames=100)
    worker = Worker(tmp_path, stages)
    stages.capacity.follow(running(cpu=1))

    job = await worker.start()
    await until(worker.has_composed)
    stages.go_on.set()
    async with asyncio.timeout(30):
        await job
    receipt = worker.receipt("failed")
    assert receipt["frames"] == 50
    # All tries at a part of the second segment, and those at its other parts so far.
    assert receipt["retries"]["segments"] >= 3
    assert receipt["pools"][0]["lost_s"] >= 0.0


async def test_a_job_whose_video_is_refused_has_a_receipt_of_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(tmp_path)
    worker = Worker(tmp_path, stages)

    def refuse(*_: Any) -> None:
        raise InvalidVideo("Not a video.")

    monkeypatch.setattr("tests.unit.stage_rig.plan_order", refuse)
    async with asyncio.timeout(30):
        await (await worker.start())
    receipt = worker.receipt("failed")
    assert receipt["stage_s"]["download"] == 1.0
    assert (receipt["frames"], receipt["pools"], receipt["paid_s"]) == (0, [], 0)


def test_a_job_that_never_began_has_no_receipt(tmp_path: Path) -> None:
    registry = JobRegistry(tmp_path / "jobs.sqlite3")
    request = JobRequest(musetalk_job_id="a", video_url="https://h/v", audio_url="https://h/a")
    registry.submit(request, Origin.ASYNC, max_queued=1)
    registry.cancel("a")
    job = registry.get("a")
    assert job is not None and job.status == "cancelled"
    assert job_body(job)["failure"]["receipt"] is None
