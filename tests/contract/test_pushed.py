"""Mend 1.3: who claims, who is pushed to, and what an orchestrator is told of pushed jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from musetalk_pipeline.errors import DownloadFailed, StageFailed
from musetalk_pipeline.options import JobOptions
from serve_app.config.environment import EnvironmentInvalid, read_environment
from serve_app.config.settings import QueueSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.polling import polling_rules
from serve_app.fleet.pushed_reports import PushedReports, report_rules
from serve_app.graph.transfers import Assignment, Finished
from serve_app.jobs.job import Origin
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobService
from tests.contract.exchange import assert_like_the_predecessor, recorded
from tests.contract.fake_orchestrator import FakeOrchestrator, answer

QUICK = WorkerOptions(
    progress_interval_s=0.01,
    progress_repeat_s=0.02,
    unknown_s=0.0,
    cancel_wait_s=10.0,
    config_label="fast",
)
UNIFIED = {"ORCHESTRATOR_BASE_URL": "http://o", "INTERNAL_API_KEY": "k", "WORKER_TYPE": "main"}


# Which of the two ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "claims", "reports"),
    [
        ({}, False, False),
        (UNIFIED, True, False),
        (UNIFIED | {"WORKER_MODE": "queue"}, False, True),
        (UNIFIED | {"WORKER_MODE": "QUEUE", "WORKER_TYPE": ""}, False, True),
        (UNIFIED | {"WORKER_TYPE": ""}, False, True),
        (UNIFIED | {"INTERNAL_API_KEY": ""}, False, False),
        (UNIFIED | {"WORKER_MODE": "buffer"}, True, False),
        (UNIFIED | {"WORKER_MODE": "buffer", "WORKER_TYPE": "buffer"}, True, False),
    ],
)
def test_jobs_are_either_claimed_or_pushed(
    env: dict[str, str], claims: bool, reports: bool
) -> None:
    read = read_environment(env)
    assert (polling_rules(read) is not None) == claims
    assert (report_rules(read) is not None) == reports


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"WORKER_MODE": "poll"}, "ORCHESTRATOR_BASE_URL"),
        ({"BUFFER_WORKER_ID": "b"}, "ORCHESTRATOR_BASE_URL"),
        ({"WORKER_MODE": "poll", "ORCHESTRATOR_BASE_URL": "http://o"}, "INTERNAL_API_KEY"),
        (UNIFIED | {"WORKER_TYPE": "buffer"}, "WORKER_TYPE"),
    ],
)
def test_claiming_without_what_it_needs_is_refused(env: dict[str, str], named: str) -> None:
    with pytest.raises(EnvironmentInvalid, match=named):
        polling_rules(read_environment(env))


# What is reported --------------------------------------------------------------------------------


class Driver:
    """Does what a test says instead of a graph of deployments."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.finished = Finished("http://h/files/a.mp4", {"stage_times": {}, "total_time": 2.0})
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.starts = 0

    async def run(self, assignment: Assignment, report: Callable[[Progress], None]) -> Finished:
        self.starts += 1
        report(Progress(Phase.DOWNLOADING, 0.0))
        report(Progress(Phase.INFERRING, 0.05, 0, 10))
        report(Progress(Phase.INFERRING, 0.5, 5, 10))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        report(Progress(Phase.UPLOADING, 0.95, 10, 10))
        return self.finished


@dataclass
class Site:
    """An ingress without HTTP: the service, its slot, and the reports."""

    driver: Driver
    service: JobService
    pushed: PushedReports

    async def push(self, job_id: str, origin: Origin = Origin.SYNC) -> None:
        request = JobRequest(musetalk_job_id=job_id, video_url="http://h/v", audio_url="http://h/a")
        await self.service.submit(request, origin)

    async def forget(self, job_id: str) -> None:
        """Make room for the same id: a success would be answered from the registry."""
        await self.service.threads.write(self.service.registry.forget, 0)
        assert await self.service.get(job_id) is None

    async def do(self) -> None:
        await self.service.run_next(self.pushed.run_reported)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[JobRegistry]:
    registry = JobRegistry(tmp_path / "jobs.sqlite3")
    yield registry
    registry.close()


@pytest.fixture
async def site(
    fake: FakeOrchestrator, registry: JobRegistry, tmp_path: Path
) -> AsyncIterator[Site]:
    driver = Driver()
    service = JobService(registry, driver, QueueSettings(), JobOptions())  # type: ignore[arg-type]
    pushed = pushed_reports(fake, tmp_path, service)
    sending = asyncio.create_task(pushed.deliver_forever())
    yield Site(driver, service, pushed)
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending


def pushed_reports(
    fake: FakeOrchestrator, folder: Path, service: JobService, **settings: int
) -> PushedReports:
    variables = {"ORCHESTRATOR_BASE_URL": fake.url, "INTERNAL_API_KEY": fake.api_key}
    env = read_environment({**variables, "SALAD_MACHINE_ID": "machine-7"})
    rules = report_rules(env)
    assert rules is not None
    return PushedReports(
        rules, env, folder, service=service, batch_size=lambda: 4, options=QUICK, **settings
    )


def queue_elsewhere(fake: FakeOrchestrator, job_id: str) -> None:
    """Let the orchestrator know a job as one that runs at this machine by way of Salad's queue."""
    fake.add_job(job_id)
    fake._hand_out("machine-7")


async def test_a_pushed_job_is_reported_from_the_first_phase_to_its_end(
    fake: FakeOrchestrator, site: Site
) -> None:
    queue_elsewhere(fake, "job-1")
    await site.push("job-1")
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: bool(fake.jobs["job-1"].accepted))
    job = fake.jobs["job-1"]
    assert (job.status, job.output_url) == ("succeeded", "http://h/files/a.mp4")
    told = [(report["phase"], report["progress"]) for report in job.progress]
    phases = list(dict.fromkeys(told))
    assert phases[:2] == [("downloading", 0.05), ("inference", 0.1)]
    assert phases[-1] == ("uploading", 0.95)
    assert {r["worker_id"] for r in job.progress + job.accepted} == {"machine-7"}
    assert {r["batch_size"] for r in job.progress + job.accepted} == {4}
    assert {r["config_label"] for r in job.progress + job.accepted} == {"fast"}
    assert {call.kind for call in fake.calls} == {
        "progress",
        "final",
    }  # it neither beats nor claims
    assert fake.violations == []


async def test_what_is_said_of_pushed_jobs_is_what_the_predecessor_said(
    fake: FakeOrchestrator, site: Site
) -> None:
    """Same paths, keys and kinds of values, a success and a failure."""
    end = recorded("queue", "final succeeded")["body"]
    site.driver.finished = Finished(end["output_url"], end["metrics"])
    queue_elsewhere(fake, "job-123")
    await site.push("job-123")
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("final")) == 1)
    # The same path again, for a job that the orchestrator handed to the queue once more.
    [accepted] = fake.jobs["job-123"].accepted
    succeeded = list(fake.calls)
    assert accepted["status"] == "succeeded"
    fake.jobs["job-123"].accepted.clear()
    fake.hand_out_again("job-123")
    fake._hand_out("machine-7")
    site.driver.error = DownloadFailed("Download failed: 404 Not Found")
    await site.forget("job-123")
    await site.push("job-123")
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("final")) == 2)
    assert_like_the_predecessor("queue", succeeded + fake.calls)
    assert fake.violations == []


@pytest.mark.parametrize(
    "error", [DownloadFailed("Download failed: 404 Not Found"), StageFailed("A stage crashed.")]
)
async def test_the_error_of_a_pushed_job_is_its_own_sentence(
    fake: FakeOrchestrator, site: Site, error: Exception
) -> None:
    queue_elsewhere(fake, "job-1")
    site.driver.error = error
    await site.push("job-1")
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: bool(fake.jobs["job-1"].accepted))
    assert (fake.jobs["job-1"].status, fake.jobs["job-1"].error) == ("failed", str(error))


@pytest.mark.parametrize("status", [409, 410])
async def test_a_pushed_job_that_the_orchestrator_wants_no_more_is_cancelled(
    fake: FakeOrchestrator, site: Site, status: int
) -> None:
    fake.always("progress", answer(status))
    site.driver.go_on.clear()
    await site.push("job-1")
    await site.do()
    job = await site.service.get("job-1")
    assert job is not None and job.status == "cancelled"
    assert fake.of("final") == []


async def test_an_orchestrator_that_does_not_know_the_job_does_not_end_it(
    fake: FakeOrchestrator, site: Site
) -> None:
    """Somebody's own job through `/generate`: 404 to all that is said about it."""
    await site.push("own")
    await site.do()
    job = await site.service.get("own")
    assert job is not None and job.status == "succeeded"
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("final")) >= 2)


async def test_nor_does_it_however_long_it_says_so(fake: FakeOrchestrator, site: Site) -> None:
    """Salad's queue would take the 409 of a stopped job for its end."""
    fake.always("progress", answer(404))
    site.driver.go_on.clear()
    await site.push("job-1")
    work = asyncio.create_task(site.do())
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 8)
    site.driver.go_on.set()
    await work
    job = await site.service.get("job-1")
    assert job is not None and job.status == "succeeded"


async def test_a_success_that_is_pushed_again_is_reported_again(
    fake: FakeOrchestrator, site: Site
) -> None:
    """The first report may have been for an attempt that was not the orchestrator's any more."""
    fake.always("final", answer(409))
    await site.push("job-1")
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("final")) == 1)
    job = await site.service.get("job-1")
    assert job is not None
    await site.pushed.report_again(job)
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("final")) == 2)
    first, second = fake.of("final")
    assert (first.path, first.body) == (second.path, second.body)
    await site.push("job-2", Origin.ASYNC)
    await site.do()
    other = await site.service.get("job-2")
    assert other is not None
    await site.pushed.report_again(other)  # nobody else's business
    await site.pushed.settle(10.0)
    assert len(fake.of("final")) == 2


async def test_a_full_outbox_takes_no_report_of_a_success_that_is_pushed_again(
    fake: FakeOrchestrator, registry: JobRegistry, site: Site, tmp_path: Path
) -> None:
    await site.push("job-1")
    await site.do()
    job = await site.service.get("job-1")
    assert job is not None
    for capacity, files in ((0, 0), (1, 1)):
        folder = tmp_path / f"room-for-{capacity}"
        folder.mkdir()
        reports = pushed_reports(fake, folder, site.service, outbox_capacity=capacity)
        await reports.report_again(job)
        await reports.settle(0.0)
        assert len(list((folder / "outbox").glob("*.json"))) == files


async def test_a_worker_that_stops_waits_until_its_reports_are_accepted(
    fake: FakeOrchestrator, site: Site
) -> None:
    """What lies on the disk of a container goes with it."""
    queue_elsewhere(fake, "job-1")
    fake.plan("final", answer(503))
    await site.push("job-1")
    await site.do()
    assert not fake.jobs["job-1"].accepted
    await site.pushed.settle(60.0)
    assert fake.jobs["job-1"].accepted
    fake.always("final", answer(503))
    await site.push("job-2")
    await site.do()
    await site.pushed.settle(0.2)  # for a time only


async def test_a_job_whose_caller_went_away_is_not_reported_as_failed(
    fake: FakeOrchestrator, site: Site
) -> None:
    """Salad's queue pushes it again; the orchestrator must not believe that it has ended."""
    queue_elsewhere(fake, "job-1")
    site.driver.go_on.clear()
    await site.push("job-1")
    work = asyncio.create_task(site.do())
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 1)
    await site.service.cancel("job-1")
    await work
    assert fake.of("final") == []
    assert fake.jobs["job-1"].status == "running"


async def test_a_run_that_is_interrupted_says_nothing_and_the_next_one_reports(
    fake: FakeOrchestrator, site: Site
) -> None:
    queue_elsewhere(fake, "job-1")
    site.driver.go_on.clear()
    await site.push("job-1")
    work = asyncio.create_task(site.do())
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("progress")) >= 1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert fake.of("final") == []
    site.driver.go_on.set()
    await site.do()
    await asyncio.to_thread(fake.wait_until, lambda: bool(fake.jobs["job-1"].accepted))
    assert (site.driver.starts, fake.jobs["job-1"].status) == (2, "succeeded")


async def test_a_job_of_the_asynchronous_api_is_nobody_elses_business(
    fake: FakeOrchestrator, site: Site
) -> None:
    await site.push("job-1", Origin.ASYNC)
    await site.do()
    assert fake.calls == []


@pytest.mark.parametrize(
    ("variables", "public_base_url", "is_warned"),
    [
        ({}, None, True),
        ({"LIPSYNC_HOST": "0.0.0.0"}, None, True),
        ({"LIPSYNC_HOST": "localhost"}, None, True),
        ({"LIPSYNC_HOST": "192.0.2.7"}, None, False),
        ({}, "https://worker.example", False),
        ({"B2_KEY_ID": "id", "B2_APP_KEY": "key", "B2_BUCKET_NAME": "clips"}, None, False),
    ],
)
def test_a_worker_warns_at_its_start_if_its_reports_contain_links_that_only_it_can_open(
    registry: JobRegistry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    public_base_url: str | None,
    is_warned: bool,
) -> None:
    env = read_environment(
        {"ORCHESTRATOR_BASE_URL": "http://o", "INTERNAL_API_KEY": "k", **variables}
    )
    rules = report_rules(env)
    assert rules is not None
    service = JobService(registry, Driver(), QueueSettings(), JobOptions())  # type: ignore[arg-type]
    PushedReports(
        rules,
        env,
        tmp_path,
        service=service,
        batch_size=lambda: 4,
        public_base_url=public_base_url,
    )
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == is_warned
    assert all("public_base_url" in text and "B2_KEY_ID" in text for text in warnings)
