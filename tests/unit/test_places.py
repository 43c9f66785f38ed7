"""More jobs are fetched than drawn: slow downloads hold no place. Mend 4.5."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.cost import Measured, StageCost
from musetalk_pipeline.errors import InvalidVideo
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.options import JobOptions
from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.graph.pools import Graph
from serve_app.graph.stage_calls import DEFAULT_PAUSES, DriverPauses
from serve_app.graph.transfers import Assignment, Attempt
from tests.unit.stage_rig import Handle, driver_of, settle, until


def attempt_id(job_id: str) -> str:
    """Return what the scratch of that job is called."""
    return job_id.encode().hex().zfill(32)


class Site:
    """Fetches end when their event is set; opening waits for an event, then refuses the video."""

    def __init__(self, folder: Path, places: int, pauses: DriverPauses = DEFAULT_PAUSES) -> None:
        self.folder = folder
        self.arrives: dict[str, asyncio.Event] = {}
        self.goes_on = asyncio.Event()
        self.fetching: list[str] = []
        self.opening: list[str] = []
        self.at_once = self.most_at_once = 0
        self.told: list[tuple[str, str]] = []
        stage = Handle(fetch=self.fetch, open=self.open, release=self.release, keep=self.keep)
        graph = Graph(stage, (), stage)
        self.driver, _ = driver_of(graph, folder, places=places, pauses=pauses)

    async def fetch(self, attempt: Attempt) -> Measured[Digests]:
        self.fetching.append(attempt.job_id)
        await self.arrives.setdefault(attempt.job_id, asyncio.Event()).wait()
        return Measured(Digests("a", "b"), (StageCost("download", 1.0, 0),))

    async def open(self, attempt: Attempt, fetched: Measured[Digests]) -> None:
        self.opening.append(attempt.job_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.goes_on.wait()
        finally:
            self.at_once -= 1
        raise InvalidVideo("Not a video.")

    async def release(self, attempt_id: str) -> None:
        self.told.append(("release", attempt_id))

    async def keep(self, attempt_id: str) -> None:
        self.told.append(("keep", attempt_id))

    def start(self, job_id: str, report: Callable[[Progress], None] = lambda _: None) -> Any:
        request = JobRequest(musetalk_job_id=job_id, video_url="https://h/v", audio_url="h")
        work = Assignment(attempt_id(job_id), None, job_id, 1, request, JobOptions())
        self.arrives.setdefault(job_id, asyncio.Event())
        return asyncio.create_task(self.driver.run(work, report))

    def arrive(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.arrives[job_id].set()


async def test_downloads_that_never_end_hold_no_place(tmp_path):
    site = Site(tmp_path, places=1)
    slow = [site.start("slow-1"), site.start("slow-2")]
    await until(lambda: len(site.fetching) == 2)
    good = site.start("good")
    site.arrive("good")
    await until(lambda: site.opening == ["good"])
    site.goes_on.set()
    with pytest.raises(InvalidVideo):
        await good
    for job in slow:
        job.cancel()
    await asyncio.wait(slow)
    assert {told for told in site.told if told[0] == "release"} == {
        ("release", attempt_id(name)) for name in ("slow-1", "slow-2", "good")
    }


async def test_only_as_many_as_there_are_places_are_worked_on_in_order_of_arrival(tmp_path):
    site = Site(tmp_path, places=2)
    jobs = [site.start(name) for name in "abcde"]
    await until(lambda: len(site.fetching) == 5)
    for name in "ecadb":
        site.arrive(name)
        await settle()
    assert site.opening == ["e", "c"]
    site.goes_on.set()
    await asyncio.wait(jobs)
    assert (site.opening, site.most_at_once) == (["e", "c", "a", "d", "b"], 2)


async def test_a_job_that_is_cancelled_while_it_waits_leaves_the_line(tmp_path):
    site = Site(tmp_path, places=1)
    jobs = {name: site.start(name) for name in "abc"}
    for name in "abc":
        site.arrive(name)
        await settle()
    jobs["b"].cancel()
    await asyncio.wait([jobs["b"]])
    site.goes_on.set()
    await asyncio.wait(list(jobs.values()))
    assert site.opening == ["a", "c"]


async def test_a_job_that_waits_for_its_place_says_that_it_lives(tmp_path):
    """Mend 3.7: nothing of it is worked on, so nothing else would."""
    site = Site(tmp_path, places=1, pauses=DriverPauses(keep_s=0.001))
    first, second = site.start("a"), site.start("b")
    site.arrive("a", "b")
    await until(lambda: site.told.count(("keep", attempt_id("b"))) > 2)
    site.goes_on.set()
    await asyncio.wait([first, second])
    await settle()
    before = len(site.told)
    await settle()
    assert len(site.told) == before  # nobody speaks for an attempt that has ended


async def test_waiting_is_downloading_to_those_who_watch_and_keeps_the_seconds(tmp_path):
    """An orchestrator knows no phase for it."""
    site = Site(tmp_path, places=1)
    first = site.start("a")
    site.arrive("a")
    await until(lambda: site.opening == ["a"])
    said: list[Progress] = []
    second = site.start("b", said.append)
    site.arrive("b")
    await until(lambda: bool(said) and "download" in said[-1].stage_seconds)
    assert (said[-1].phase, said[-1].stage_seconds) == (Phase.DOWNLOADING, {"download": 1.0})
    site.goes_on.set()
    await asyncio.wait([first, second])


async def test_a_call_that_ray_cancels_is_made_again(tmp_path):
    """Ray raises `CancelledError` for it, as it does for a cancellation of the job."""
    site = Site(tmp_path, places=1)
    site.goes_on.set()
    fetch, cancelled = site.fetch, []

    async def cancelled_once(attempt: Attempt) -> Measured[Digests]:
        if not cancelled:
            cancelled.append(attempt.job_id)
            raise asyncio.CancelledError
        return await fetch(attempt)

    stage = Handle(fetch=cancelled_once, open=site.open, release=site.release, keep=site.keep)
    pauses, graph = DriverPauses(retry_s=(0.0,)), Graph(stage, (), stage)
    site.driver, _ = driver_of(graph, tmp_path, pauses=pauses)
    job = site.start("a")
    site.arrive("a")
    with pytest.raises(InvalidVideo):
        await job
    assert cancelled == ["a"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, AttributeError])
async def test_a_release_that_fails_does_not_become_the_jobs_end(error, tmp_path):
    site = Site(tmp_path, places=1)
    site.goes_on.set()

    async def fails(attempt_id: str) -> None:
        raise error

    stage = Handle(fetch=site.fetch, open=site.open, release=fails, keep=site.keep)
    site.driver, _ = driver_of(Graph(stage, (), stage), tmp_path)
    job = site.start("a")
    site.arrive("a")
    with pytest.raises(InvalidVideo):
        await job


async def test_scratch_that_a_lost_replica_keeps_is_removed_later(tmp_path):
    site = Site(tmp_path, places=1)
    site.goes_on.set()
    removed = asyncio.Event()
    calls = 0

    async def lost_at_first(attempt_id: str) -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:  # one call of each stage
            raise ConnectionError
        removed.set()

    stage = Handle(fetch=site.fetch, open=site.open, release=lost_at_first, keep=site.keep)
    pauses = DriverPauses(release_s=(0.0,))
    site.driver, _ = driver_of(Graph(stage, (), stage), tmp_path, pauses=pauses)
    job = site.start("a")
    site.arrive("a")
    with pytest.raises(InvalidVideo):
        await job
    async with asyncio.timeout(30):
        await removed.wait()
