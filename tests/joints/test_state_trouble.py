"""The job registry is locked by another process, or its disk is full, while jobs come and run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from orchestrator.store.errors import StoreUnavailable
from orchestrator.store.tables import ingress_jobs, jobs
from serve_app.contract.outcomes import Phase, Progress
from serve_app.jobs.housekeeping import SweepTiming
from serve_app.jobs.job import Origin, SubmissionOptions
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobTiming
from serve_app.jobs.state_file import StateThreads, StateTiming, write_probe
from tests.joints.job_door import PATIENT, Rig, body, disk_full, job_door, lock_held, request
from tests.waiting import turns, until_async

# Waits less for a lock that will not be given, and probes the file for every answer.
IMPATIENT = StateTiming(
    busy_s=0.3, queued_s=30.0, writable_s=0.0, unwritable_s=0.0, probe_wait_s=30.0
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with job_door(tmp_path, timing=JobTiming(state=IMPATIENT)) as rig:
        yield rig


def assert_asks_to_come_back(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    told = answer.json()
    assert (told["code"], told["retryable"], told["status"]) == (
        "state_unavailable",
        True,
        "failed",
    )
    assert told["hint"] and told["stage"] == "unknown"


def test_reads_see_what_was_committed_while_another_process_writes(tmp_path):
    """Mend 3.6: a read takes no lock, a write fails soon."""
    registry = JobRegistry(tmp_path / "jobs.sqlite3", timing=IMPATIENT)
    registry.submit(request(), Origin.ASYNC, 10)
    with lock_held(tmp_path / "jobs.sqlite3"):
        assert registry.get("a").status == "queued"
        assert [job.id for job in registry.page(None, 10).jobs] == ["a"]
        with pytest.raises(StoreUnavailable):
            registry.submit(request("b"), Origin.ASYNC, 10)
    registry.submit(request("b"), Origin.ASYNC, 10)
    registry.close()


async def test_a_stalled_writer_elsewhere_holds_up_neither_http_nor_a_running_job(rig):
    """Mends 3.2, 3.6 and 4.8, with a second process that holds the lock until we let it go."""
    rig.graph.holds = True
    await rig.client.post("/v1/avatar/jobs", json=body())
    work = asyncio.create_task(rig.service.run_next())
    await rig.graph.inferring.wait()
    with lock_held(rig.door.path):
        answers = await asyncio.gather(
            *(rig.client.get("/v1/avatar/jobs/a") for _ in range(20)),
            *(rig.client.post("/v1/avatar/jobs", json=body(f"b{n}")) for n in range(5)),
        )
        assert {answer.status_code for answer in answers[:20]} == {200}
        for answer in answers[20:]:
            assert_asks_to_come_back(answer)
        assert not await rig.service.threads.is_writable()
        assert await rig.service.run_next() is None  # nothing is begun, and no slot fails
        rig.graph.go_on.set()  # the job ends while its end cannot be stored
        await until_async(lambda: rig.graph.at_work == 0, "the attempt has not ended")
        assert (rig.service.active_jobs, work.done()) == (1, False)
    await work
    assert rig.door.registry.get("a").status == "succeeded"
    assert (len(rig.graph.ran), rig.service.active_jobs) == (1, 0)


async def test_a_full_disk_refuses_new_jobs_and_loses_no_running_one(rig):
    """Mends 3.2 and 4.8: what is done is stored when there is space."""
    rig.graph.holds = True
    await rig.client.post("/v1/avatar/jobs", json=body())
    work = asyncio.create_task(rig.service.run_next())
    await rig.graph.inferring.wait()
    assert await rig.service.threads.is_writable()
    with disk_full(rig.door.registry):
        large = {"metadata": {str(n): "x" * 250 for n in range(60)}}
        assert_asks_to_come_back(await rig.client.post("/v1/avatar/jobs", json=body("b", **large)))
        assert not await rig.service.threads.is_writable()
        assert (await rig.client.get("/v1/avatar/jobs/a")).status_code == 200
        rig.graph.go_on.set()
        await until_async(lambda: rig.graph.at_work == 0, "the attempt has not ended")
        with pytest.raises(StoreUnavailable):
            await rig.service.threads.write(write_probe, rig.door.registry.file)
        assert (rig.service.active_jobs, work.done()) == (1, False)
    await work
    assert rig.door.registry.get("a").status == "succeeded"
    assert (len(rig.graph.ran), rig.service.active_jobs) == (1, 0)
    assert (await rig.client.post("/v1/avatar/jobs", json=body("b"))).status_code == 202


async def test_a_lease_that_could_not_be_renewed_starts_no_second_attempt_here(tmp_path):
    """Mend 3.2: the lease has run out, the first attempt lives, another slot looks for work."""
    async with job_door(tmp_path, lease_s=1.1) as rig:
        rig.graph.holds = True
        await rig.client.post("/v1/avatar/jobs", json=body())
        work = asyncio.create_task(rig.service.run_next())
        await rig.graph.inferring.wait()
        with rig.door.registry.file.write() as tx:
            tx.execute(jobs.update().values(lease_until=0.0))
        assert await rig.service.run_next() is None
        rig.graph.go_on.set()
        await work
        assert rig.door.registry.get("a").status == "succeeded"
        assert len(rig.graph.ran) == 1


async def test_a_registry_that_breaks_in_another_way_ends_the_attempt(rig):
    """Mend 3.2: no driver runs on alone, whatever was raised."""
    rig.graph.holds = True
    await rig.client.post("/v1/avatar/jobs", json=body())
    with rig.door.registry.file.write() as tx:  # a fault of the statement, not of the file
        tx.execute(sa.text("ALTER TABLE events RENAME TO events_of_old"))
    with pytest.raises(Exception, match="no such table: events"):
        await rig.service.run_next()
    assert (rig.graph.at_work, rig.service.active_jobs) == (0, 0)


async def test_a_caller_that_waits_is_answered_when_the_lock_is_gone(rig):
    """Mend 3.6: its keep-alive could not be renewed before it ran out."""
    asked = asyncio.create_task(rig.client.post("/generate", json=body()))
    await until_async(lambda: rig.door.registry.get("a"), "the job was not entered")
    with lock_held(rig.door.path), pytest.raises(StoreUnavailable):
        await rig.service.threads.write(rig.door.registry.keep_alive, ["a"])
    with rig.door.registry.file.write() as tx:
        tx.execute(ingress_jobs.update().values(wanted_until=0.0))
    await rig.service.run_next()
    assert (await asked).status_code == 200


async def test_every_phase_reaches_two_readers_and_one_that_comes_after_a_restart(tmp_path):
    """Mend 0: all phases pass at once, between two beats and two looks."""
    order = ["downloading", "validating", "inferring", "encoding", "uploading", "completed"]

    async def phases(rig: Rig) -> list[str]:
        async with rig.client.stream("GET", "/v1/avatar/jobs/a/events") as stream:
            data = [line[6:] async for line in stream.aiter_lines() if line[:6] == "data: "]
        seen = [json.loads(text)["progress"]["phase"] for text in data]
        return [phase for phase, _ in groupby(seen) if phase != "queued"]

    async with job_door(tmp_path) as rig:
        await rig.client.post("/v1/avatar/jobs", json=body())
        readers = [asyncio.create_task(phases(rig)) for _ in range(2)]
        await rig.client.post("/v1/avatar/jobs", json=body())  # joined
        assert await rig.service.run_next() is not None
        assert await asyncio.gather(*readers) == [order, order]
    (tmp_path / "results" / "a.mp4").unlink()
    (tmp_path / "results").rmdir()
    async with job_door(tmp_path) as rig:
        assert await phases(rig) == order


async def test_a_job_that_is_given_up_has_an_end_event_too(rig):
    """Mend 0: its last progress is that of its last change of phase."""
    registry = rig.door.registry
    registry.submit(request(), Origin.ASYNC, 10)
    job = registry.take(lease_s=20.0, max_attempts=1)
    inferring = Progress(Phase.INFERRING, 0.1, 5, 10)
    registry.beat(job, -1.0, inferring, [inferring])
    assert registry.sweep(max_attempts=1) == ["a"]
    text = (await rig.client.get("/v1/avatar/jobs/a/events")).text
    kinds = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["progress", "end"]


async def test_a_job_claimed_twice_reports_every_phase_to_both(rig):
    """Mend 0: who joins a claimed job is told each phase, not of a sample a second."""
    rig.graph.holds = True
    reports: tuple[list[str], list[str]] = ([], [])

    def claim(told: list[str]) -> asyncio.Task[object]:
        report = lambda progress: told.append(str(progress.phase))  # noqa: E731
        return asyncio.create_task(rig.service.run_claimed(request(), report, SubmissionOptions()))

    first = claim(reports[0])
    await rig.graph.inferring.wait()
    second = claim(reports[1])
    await until_async(lambda: "inferring" in reports[1], "the second claim was not told")
    rig.graph.go_on.set()
    assert (await first) == (await second)
    phases = ["downloading", "validating", "inferring", "encoding", "uploading"]
    for told in reports:
        assert [phase for phase in dict.fromkeys(told) if phase in phases] == phases
    assert len(rig.graph.ran) == 1


async def test_a_take_that_is_cancelled_half_way_leaves_its_job_to_others(tmp_path):
    """Mend 3.2: the statement runs in a thread, and runs on."""
    timing = replace(PATIENT, sweeps=SweepTiming(sweep_s=1e9))
    async with job_door(tmp_path, timing=timing) as rig:
        assert await rig.service.run_next() is None  # has swept, so the next thing is to take
        await rig.service.submit(request(), Origin.ASYNC)
        with lock_held(rig.door.path) as holder:
            work = asyncio.create_task(rig.service.run_next())
            await turns()
            work.cancel()
            holder.stdin.close()
            with pytest.raises(asyncio.CancelledError):
                await work
        job = rig.door.registry.get("a")
        assert (job.status, rig.graph.ran) == ("queued", [])


async def test_behind_a_write_that_never_returns_others_are_refused_in_time(tmp_path: Path) -> None:
    """A disk that stalls raises nothing, and a thread in it cannot be ended."""
    timing = replace(IMPATIENT, queued_s=0.5)
    registry = JobRegistry(tmp_path / "jobs.sqlite3", timing=timing)
    threads = StateThreads(registry.file, timing)
    go_on, written = threading.Event(), list[str]()
    stalled = asyncio.create_task(threads.write(go_on.wait, 60.0))
    async with asyncio.timeout(30.0):
        await turns()
        with pytest.raises(StoreUnavailable):
            await threads.write(written.append, "refused")
        assert not await threads.is_writable()
        given_up = asyncio.create_task(threads.write(written.append, "given up"))
        await turns()
        given_up.cancel()
        await asyncio.wait({given_up})
        go_on.set()
        assert await stalled
        assert await threads.is_writable()
        await threads.write(written.append, "written")
    assert written == ["written"]
    registry.close()
