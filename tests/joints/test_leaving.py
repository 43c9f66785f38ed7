"""A worker that is drained, deployed again or deleted: what runs ends or goes back into the queue,
and nobody waits for a job that this process will not start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.api.job_runner import JobRunner
from serve_app.jobs.job import Job, Origin
from tests.joints.job_door import Rig, body, job_door, request
from tests.waiting import until_async

LONG_S = 600.0


@dataclass
class Leaving:
    """What Serve does to the replica."""

    is_delete: bool
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def has_begun(self) -> bool:
        return self.begun.is_set()

    async def is_deletion(self) -> bool:
        return self.is_delete


@contextlib.asynccontextmanager
async def at_work(
    folder: Path, departure: Leaving | None = None, handover_s: float = LONG_S
) -> AsyncIterator[Rig]:
    """A worker with one place, where the job `a` runs and `b` waits; both run until told."""
    async with job_door(folder, max_concurrent_jobs=1) as rig:
        rig.graph.holds = True
        runner = JobRunner(
            rig.door.services,
            lambda slot: runner.run_next(slot),
            departure=departure,
            handover_s=handover_s,
        )
        runner.start()
        await rig.service.submit(request("a"), Origin.ASYNC)
        await rig.graph.inferring.wait()
        await rig.service.submit(request("b"), Origin.ASYNC)
        try:
            yield rig
        finally:
            await runner.aclose()


async def read(rig: Rig, job_id: str) -> Job:
    job = await rig.service.get(job_id)
    assert job is not None
    return job


async def over(rig: Rig) -> None:
    """Wait until nothing runs any more."""
    async with asyncio.timeout(60.0):
        await rig.door.services.draining.over.wait()


async def test_a_drain_lets_running_jobs_end_and_keeps_the_queue(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        first = (await rig.client.post("/admin/drain")).json()
        assert (first["status"], first["queued"]) == ("draining", 1)
        [running] = first["running"]
        assert (running["id"], running["progress"]["phase"]) == ("a", "inferring")
        assert (await rig.client.get("/hc")).json() == {"status": "stopping"}
        rig.graph.go_on.set()
        await over(rig)
        last = (await rig.client.post("/admin/drain")).json()
        assert last == {"status": "drained", "running": [], "queued": 1}
        assert (await read(rig, "a")).status == "succeeded"
        assert [work.job_id for work in rig.graph.ran] == ["a"]


async def test_a_drain_that_hands_back_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        await rig.client.post("/admin/drain", json={"hand_back": True})
        await over(rig)
        last = (await rig.client.post("/admin/drain")).json()
        assert last == {"status": "drained", "running": [], "queued": 2}
        job = await read(rig, "a")
        assert (job.status, job.attempt) == ("queued", 0)  # this start does not count
        assert rig.graph.at_work == 0


async def test_who_waits_for_a_queued_job_is_sent_away_with_a_time(tmp_path: Path) -> None:
    """Their open requests would keep the old ingress, and so the new one from starting."""
    async with at_work(tmp_path) as rig:
        waiting = asyncio.create_task(rig.client.post("/generate", json=body("c")))
        followed = asyncio.create_task(rig.client.get("/v1/avatar/jobs/b/events"))
        await until_async(
            lambda: rig.door.services.open_calls.count == 1, "the request has not been accepted"
        )
        await rig.client.post("/admin/drain")
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
        assert answer.headers["Retry-After"] == "30"
        assert "event: end" not in (await followed).text
        rig.graph.go_on.set()
        await over(rig)


async def test_jobs_go_back_at_once_if_the_application_is_deleted(tmp_path: Path) -> None:
    """Finding 10: the stages were gone, and the job waited for them until the drain time ended."""
    leaving = Leaving(is_delete=True)
    async with at_work(tmp_path, leaving) as rig:
        leaving.begun.set()
        await over(rig)
        assert (await read(rig, "a")).status == "queued"


async def test_a_job_may_end_while_the_application_is_deployed_again(tmp_path: Path) -> None:
    leaving = Leaving(is_delete=False)
    async with at_work(tmp_path, leaving) as rig:
        leaving.begun.set()
        await rig.door.services.draining.requested.wait()
        rig.graph.go_on.set()
        await over(rig)
        assert (await read(rig, "a")).status == "succeeded"


async def test_a_job_that_takes_longer_starts_again_in_the_new_ingress(tmp_path: Path) -> None:
    leaving = Leaving(is_delete=False)
    async with at_work(tmp_path, leaving, handover_s=0.0) as rig:
        leaving.begun.set()
        await over(rig)
        assert (await read(rig, "a")).status == "queued"
        assert rig.graph.at_work == 0
