"""The ingress of this project's worker, all real but its stages, polls the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.api.job_runner import JobRunner
from serve_app.config.settings import QueueSettings
from serve_app.jobs.job import Origin
from tests.joints.job_door import Door, Graph, request
from tests.orchestrator.running import INTERNAL_KEY, Running
from tests.waiting import until_async

pytestmark = pytest.mark.slow

WITHIN_S = 10.0  # a claim is held for twice as long


@dataclass(frozen=True, slots=True)
class Ingress:
    """One slot, which claims; its jobs stay in `inferring` until they are told to go on."""

    door: Door
    graph: Graph
    runner: JobRunner


@contextlib.asynccontextmanager
async def polling(service: Running, folder: Path) -> AsyncIterator[Ingress]:
    (folder / "results").mkdir()
    graph = Graph(folder / "results", holds=True)
    door = Door(
        folder,
        graph,
        QueueSettings(max_concurrent_jobs=1),
        ORCHESTRATOR_BASE_URL=service.url,
        INTERNAL_API_KEY=INTERNAL_KEY,
        WORKER_TYPE="main",
        WORKER_ID="box-1",
        POLL_INTERVAL_SEC="3600",
        ALLOW_LOCAL_STORE="true",
    )
    runner = JobRunner(door.services, lambda slot: runner.run_next(slot))
    runner.start()
    try:
        await asyncio.to_thread(service.wait_for_held_claims, 1)
        yield Ingress(door, graph, runner)
    finally:
        await runner.aclose()
        door.registry.close()


async def test_a_job_of_its_own_does_not_wait_for_a_held_claim(
    service: Running, tmp_path: Path
) -> None:
    async with polling(service, tmp_path) as ingress:
        await ingress.door.services.jobs.submit(request("a"), Origin.ASYNC)
        await asyncio.wait_for(ingress.graph.inferring.wait(), WITHIN_S)
        assert [work.job_id for work in ingress.graph.ran] == ["a"]
        ingress.graph.go_on.set()
        await asyncio.to_thread(service.submit, "b")  # then it claims again, with a new claim
        await until_async(
            lambda: service.bench.store.get("b").state == "succeeded", "b has not been done"
        )


async def test_an_ingress_that_leaves_gives_back_the_job_that_it_runs(
    service: Running, tmp_path: Path
) -> None:
    async with polling(service, tmp_path) as ingress:
        await asyncio.to_thread(service.submit, "a")
        await asyncio.wait_for(ingress.graph.inferring.wait(), WITHIN_S)
        await ingress.runner.leave()
        job = service.bench.store.get("a")
        assert (job.state, job.failures, job.interruptions) == ("queued", 0, 1)
        assert service.bench.store.attempts("a")[0].error == "The worker ended: It was stopped."
        assert ingress.graph.at_work == 0


async def test_an_ingress_that_is_drained_ends_its_job_and_its_claim(
    service: Running, tmp_path: Path
) -> None:
    async with polling(service, tmp_path) as ingress:
        await asyncio.to_thread(service.submit, "a")
        await asyncio.wait_for(ingress.graph.inferring.wait(), WITHIN_S)
        draining = asyncio.create_task(ingress.runner.drain())
        await ingress.door.services.draining.requested.wait()
        ingress.graph.go_on.set()
        await draining
        assert service.bench.store.get("a").state == "succeeded"
        [worker] = service.bench.store.workers()
        assert (worker.left_because, worker.is_online) == ("It was stopped.", False)
