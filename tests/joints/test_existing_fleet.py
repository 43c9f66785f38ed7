"""A fleet that is there already: from its variables to what its orchestrator hears last."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from musetalk_pipeline.options import JobOptions
from serve_app.config.environment import read_environment
from serve_app.config.settings import QueueSettings, reported_jobs
from serve_app.fleet.polling import Polling, polling_rules
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobService
from serve_app.launcher.environment_checks import environment_faults
from tests.contract.exchange import recorded
from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.contract.test_pushed import Driver
from tests.joints.job_door import AppArgs, PoolSettings, job_door

SHARED = {"B2_KEY_ID": "id", "B2_APP_KEY": "key", "B2_BUCKET_NAME": "clips"}


@pytest.fixture
def fake() -> Iterator[FakeOrchestrator]:
    with FakeOrchestrator() as orchestrator:
        yield orchestrator


@contextlib.asynccontextmanager
async def polling(fake: FakeOrchestrator, folder: Path, **variables: str) -> AsyncIterator[Polling]:
    """Do what the ingress does with these variables; only the graph is a double."""
    variables |= {"ORCHESTRATOR_BASE_URL": fake.url, "INTERNAL_API_KEY": fake.api_key, **SHARED}
    env = read_environment(variables)
    assert list(environment_faults(env)) == []
    rules = polling_rules(env)
    assert rules is not None
    registry = JobRegistry(folder / "jobs.sqlite3")
    service = JobService(registry, Driver(), QueueSettings(), JobOptions())  # type: ignore[arg-type]

    async def can_run() -> bool:
        return True

    jobs = reported_jobs(AppArgs(pools=[PoolSettings(name="cpu")]), env)
    worker = Polling(
        rules,
        env,
        folder,
        service=service,
        can_run=can_run,
        capacity=jobs,
        batch_size=lambda: 4,
    )
    await worker.start()
    await asyncio.to_thread(fake.wait_until, lambda: bool(fake.of("heartbeat")))
    try:
        yield worker
    finally:
        await worker.aclose()
        registry.close()


async def test_the_unified_workers_environment_claims_and_reports_as_one_main_worker(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mends 1.3, 1.5, 1.6 and 1.17: WORKER_MODE is not set."""
    variables = {
        "WORKER_TYPE": "transient",
        "SALAD_MACHINE_ID": "machine-7",
        "GPU_CLASS": "short",
        "GPU_CLASS_NAME": "long",
        "PROVIDER": "salad",
    }
    async with polling(fake, tmp_path, **variables) as worker:
        fake.add_job("job-1", aspect_ratio="1:1", resolution="512x512")
        assert await worker.claim_and_run()
    [register] = fake.of("register")
    assert register.path == "/internal/main/workers/machine-7/register"
    assert register.body == {
        "worker_type": "transient",
        "gpu_class": "long",
        "provider": "salad",
        "capacity": 2,
    }
    beat, told = fake.of("heartbeat")[0].body, recorded("main", "heartbeat idle")["body"]
    assert beat.keys() - {"jobs"} == told.keys()
    assert beat["system_info"].keys() == told["system_info"].keys()
    [claim] = fake.of("claim")
    assert claim.body == {"worker_id": "machine-7", "worker_type": "transient", "gpu_class": "long"}
    assert fake.jobs["job-1"].status == "succeeded"
    assert fake.violations == []


async def test_a_buffer_worker_without_an_id_is_named_by_its_host(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Mends 1.5 and 1.17: whatever the machine is called elsewhere."""
    variables = {
        "WORKER_MODE": "Buffer",
        "SALAD_MACHINE_ID": "machine-7",
        "GPU_CLASS": "short",
        "GPU_CLASS_NAME": "long",
        "BUFFER_CAPACITY": "3",
    }
    async with polling(fake, tmp_path, **variables) as worker:
        fake.add_job("job-1", buffer_job_id="buf-1")
        assert await worker.claim_and_run()
    name = f"buffer-{socket.gethostname()}"
    beat = fake.of("heartbeat")[0]
    assert beat.path == f"/internal/buffer/workers/{name}/heartbeat"
    assert (beat.body["gpu_class"], beat.body["capacity"]) == ("short", 3)
    assert {call.body["worker_id"] for call in fake.of("claim") + fake.of("progress")} == {name}
    assert fake.of("register") == []
    assert fake.jobs["buf-1"].status == "succeeded"
    assert fake.violations == []


async def test_the_probe_may_be_a_head_request_behind_the_proxy_too(tmp_path: Path) -> None:
    """Mend 1.17."""
    async with job_door(tmp_path) as rig:
        rig.door.services.availability.is_stopping = True
        answer = await rig.client.head("/hc")
    assert (answer.status_code, answer.content) == (503, b"")
