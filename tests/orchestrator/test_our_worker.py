"""This project's own worker, wired as the ingress wires it, against the service over a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.states import AttemptEnd
from orchestrator.store.values import AttemptName, Completion
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.contract.worker_rig import (
    DONE,
    OPTIONS,
    Desk,
    ProgressCallback,
    Rig,
    preparing,
    worker_rig,
)
from tests.orchestrator.databases import worker
from tests.orchestrator.running import INTERNAL_KEY, Running

NO_FACE = Failure("media_error", "No face was found.", "no_face", "preprocessing", False, 422)
CRASHED = Failure("processing_error", "A stage failed.", "stage_failed", "inference", True, 500)


class _Address(FakeOrchestrator):
    """The address and the key of the service, in the form that the rig takes them."""

    def __init__(self, service: Running) -> None:
        super().__init__(api_key=INTERNAL_KEY)
        self._service = service

    @property
    def url(self) -> str:
        return self._service.url


@contextlib.asynccontextmanager
async def rig_for(service: Running, folder: Path, **options: Any) -> AsyncIterator[Rig]:
    async with worker_rig(_Address(service), folder, **options) as rig:
        yield rig


async def submit(service: Running, job_id: str) -> None:
    await asyncio.to_thread(service.submit, job_id)


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for something of the service, which has no event for it here."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(is_true):
            await asyncio.sleep(0.01)


def returning(outcome: Outcome) -> Desk:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        return outcome

    return Desk(job)


@pytest.mark.slow
@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_a_job_is_claimed_run_and_reported(
    service: Running, tmp_path: Path, is_buffer: bool
) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await preparing(on_progress)
        on_progress(Progress(Phase.INFERRING, 0.5, 50, 100))
        on_progress(Progress(Phase.ENCODING, 0.8, 100, 100))
        return DONE

    await submit(service, "a/b?c ü")
    desk = Desk(job)
    async with rig_for(service, tmp_path, desk=desk, is_buffer=is_buffer, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
        assert not await rig.worker.claim_and_run()
    (request,) = desk.ran
    assert request.musetalk_job_id == "a/b?c ü"
    assert request.video_url.endswith("signature=s")
    job_row, events = service.bench.store.follow("a/b?c ü", 0)
    assert (job_row.state, job_row.output_url) == ("succeeded", DONE.output_url)
    assert job_row.metrics == DONE.metrics
    phases = [(event.facts or {}).get("phase") for event in events if event.kind == "phase"]
    assert "inferring" in phases
    assert phases[-1] == "encoding"
    (attempt,) = service.bench.store.attempts("a/b?c ü")
    assert (attempt.ending, attempt.worker_type) == (
        AttemptEnd.SUCCEEDED,
        "buffer" if is_buffer else "main",
    )


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_an_input_at_fault_ends_the_job_at_its_first_worker(
    service: Running, tmp_path: Path, is_buffer: bool
) -> None:
    await submit(service, "job-1")
    async with rig_for(service, tmp_path, desk=returning(NO_FACE), is_buffer=is_buffer) as rig:
        assert await rig.worker.claim_and_run()
    job = service.bench.store.get("job-1")
    assert (job.state, job.error, job.attempt) == ("failed", "No face was found.", 1)
    assert job.failure == {
        "error_type": "media_error",
        "code": "no_face",
        "stage": "preprocessing",
        "retryable": False,
    }


async def test_a_job_that_a_worker_fails_is_done_by_another(
    service: Running, tmp_path: Path
) -> None:
    await submit(service, "job-1")
    async with (
        rig_for(service, tmp_path / "a", desk=returning(CRASHED), worker_id="a") as bad,
        rig_for(service, tmp_path / "b", worker_id="b") as good,
    ):
        assert await bad.worker.claim_and_run()
        assert not await bad.worker.claim_and_run()
        assert await good.worker.claim_and_run()
    endings = [attempt.ending for attempt in service.bench.store.attempts("job-1")]
    assert endings == [AttemptEnd.FAILED, AttemptEnd.SUCCEEDED]
    assert service.bench.store.get("job-1").state == "succeeded"


async def test_a_job_that_is_cancelled_here_stops_there(service: Running, tmp_path: Path) -> None:
    is_running = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        is_running.set()
        await asyncio.Event().wait()
        return DONE

    await submit(service, "job-1")
    desk = Desk(job)
    async with rig_for(service, tmp_path, desk=desk, is_beating=True) as rig:
        running = asyncio.create_task(rig.worker.claim_and_run())
        await asyncio.wait_for(is_running.wait(), 20)
        service.bench.store.cancel("job-1")
        await until(lambda: desk.cancelled == ["job-1"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert service.bench.store.get("job-1").state == "cancelled"


async def test_a_worker_that_is_drained_claims_nothing_more(
    service: Running, tmp_path: Path
) -> None:
    async with rig_for(service, tmp_path, is_beating=True) as rig:
        await until(lambda: len(service.bench.store.workers()) == 1)
        service.bench.store.drain("machine-7")
        await submit(service, "job-1")
        await until(lambda: rig.worker._is_drained)
        assert not await rig.worker.claim_and_run()
        assert service.bench.store.get("job-1").state == "queued"


async def test_a_worker_without_its_claim_gives_the_job_back(
    service: Running, tmp_path: Path
) -> None:
    """The answer to a claim is lost: the heartbeats say that nothing runs there."""
    await submit(service, "job-1")
    await asyncio.to_thread(service.claim, "machine-7")
    service.bench.age(16.0)
    async with rig_for(service, tmp_path, is_beating=True):
        await until(lambda: service.bench.store.get("job-1").state == "queued")
    job = service.bench.store.get("job-1")
    assert (job.failures, job.interruptions) == (0, 1)


async def claims(rig: Rig, give_up: asyncio.Event | None = None) -> bool:
    """Claim until there is a job or `give_up` is set, as the slots of the ingress do."""
    while True:
        if await rig.worker.claim_and_run(give_up):
            return True
        if give_up is not None and give_up.is_set():
            return False
        await asyncio.sleep(0)


async def held_claim(service: Running) -> None:
    await asyncio.to_thread(service.wait_for_held_claims, 1)


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_a_claim_is_held_until_there_is_a_job(
    service: Running, tmp_path: Path, is_buffer: bool
) -> None:
    async with rig_for(service, tmp_path, is_buffer=is_buffer, is_beating=True) as rig:
        claiming = asyncio.create_task(claims(rig))
        await held_claim(service)
        await submit(service, "job-1")
        assert await asyncio.wait_for(claiming, 20)
    assert service.bench.store.get("job-1").state == "succeeded"


async def test_a_held_claim_is_given_up_and_the_next_job_is_another_workers(
    service: Running, tmp_path: Path
) -> None:
    give_up = asyncio.Event()
    async with (
        rig_for(service, tmp_path / "a", worker_id="a", is_beating=True) as busy,
        rig_for(service, tmp_path / "b", worker_id="b", is_beating=True) as other,
    ):
        first = asyncio.create_task(claims(busy, give_up))
        await held_claim(service)
        give_up.set()
        assert not await asyncio.wait_for(first, 20)
        second = asyncio.create_task(claims(other))
        await asyncio.to_thread(service.wait_for_held_claims, 2)  # the first one is not missed yet
        await submit(service, "job-1")
        assert await asyncio.wait_for(second, 20)
    (attempt,) = service.bench.store.attempts("job-1")
    assert attempt.worker_id == "b"


async def test_a_drain_ends_a_held_claim(service: Running, tmp_path: Path) -> None:
    options = replace(OPTIONS, claim_wait_s=30.0)
    async with rig_for(service, tmp_path, options=options, is_beating=True) as rig:
        await until(lambda: rig.worker._has_additions)
        claiming = asyncio.create_task(rig.worker.claim_and_run())
        await held_claim(service)
        service.bench.store.drain("machine-7")
        assert not await asyncio.wait_for(claiming, 20)


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_a_worker_that_leaves_gives_its_job_back_at_once(
    service: Running, tmp_path: Path, is_buffer: bool
) -> None:
    is_running = asyncio.Event()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        is_running.set()
        await asyncio.Event().wait()
        return DONE

    await submit(service, "job-1")
    async with rig_for(service, tmp_path, desk=Desk(job), is_buffer=is_buffer) as rig:
        beating = asyncio.create_task(rig.worker.beat_forever())
        await until(lambda: rig.worker._has_additions)
        running = asyncio.create_task(rig.worker.claim_and_run())
        await asyncio.wait_for(is_running.wait(), 20)
        for task in (running, beating):
            task.cancel()
            await asyncio.wait({task})
        await rig.worker.leave("it was stopped")
    job_row = service.bench.store.get("job-1")
    assert (job_row.state, job_row.failures, job_row.interruptions) == ("queued", 0, 1)
    (left,) = service.bench.store.workers()
    assert (left.left_because, left.is_online) == ("it was stopped", False)
    assert not list((tmp_path / "claims").glob("*.held"))


async def test_a_late_worker_stops_and_reports_nothing(service: Running, tmp_path: Path) -> None:
    """The lease is lost while the job runs, and another worker has finished it meanwhile."""
    other = Completion("https://files.example/other.mp4", {"total_time": 1.0})

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(service.bench.store.goodbye, "machine-7", "it fell silent")
        lease = await asyncio.to_thread(service.bench.store.claim, worker("other"))
        assert lease is not None
        name = AttemptName("job-1", "other", lease.attempt)
        await asyncio.to_thread(service.bench.store.finish, name, other)
        return DONE

    await submit(service, "job-1")
    async with rig_for(service, tmp_path, desk=Desk(job)) as rig:
        assert await rig.worker.claim_and_run()
        assert rig.outbox.pending() == 0
    assert service.bench.store.get("job-1").output_url == other.output_url
