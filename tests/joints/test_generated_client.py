"""A client that a public generator makes of the document runs a job, without a line of ours."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from serve_app.api.job_runner import JobRunner
from tests.joints.job_door import Door, Graph, body, serving

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / ".cache/tools/openapi-python-client/bin/openapi-python-client"
KEY = "callers-key-one"
NAME = "generated_lipsync_client"
# JSON is JSON; the generator has to be told which other types are bytes, and which are text.
SETTINGS = {
    "post_hooks": [],
    "content_type_overrides": {
        "video/mp4": "application/octet-stream",
        "image/png": "application/octet-stream",
        "application/vnd.apple.mpegurl": "application/octet-stream",
        "text/event-stream": "text/html",
        "application/offset+octet-stream": "application/octet-stream",
    },
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not GENERATOR.exists(),
        reason="openapi-python-client is not installed; scripts/ci-tools.sh installs it",
    ),
]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    (tmp_path / "results").mkdir()
    door = Door(tmp_path, Graph(tmp_path / "results"), INGRESS_API_KEY=KEY)
    yield door
    door.registry.close()


@pytest.fixture
def generated(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The client, as a package. Whatever the generator does not understand is an error."""
    document, settings = tmp_path / "openapi.json", tmp_path / "settings.json"
    document.write_text(json.dumps(door.app.openapi()))
    settings.write_text(json.dumps(SETTINGS))
    made = subprocess.run(
        [GENERATOR, "generate", "--path", document, "--config", settings, "--meta", "none",
         "--output-path", tmp_path / NAME, "--fail-on-warning"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout + made.stderr
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(NAME)
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{NAME}.{name}")


async def test_a_generated_client_runs_a_job(door: Door, generated: ModuleType) -> None:
    models = part("models")
    runner = JobRunner(door.services, lambda slot: runner.run_next(slot), fetch_ahead=1)
    runner.start()
    async with serving(door.app) as server:
        base = str(server.base_url).rstrip("/")
        async with generated.AuthenticatedClient(base_url=base, token=KEY) as client:
            sent = models.JobCreate.from_dict(body("a", params={"crf": 20}))
            job = await part("api.jobs.create_job").asyncio(client=client, body=sent)
            assert isinstance(job, models.Job) and job.id == "a"
            assert job.input_.params.crf == 20 and job.created_at.tzinfo is not None
            events = await part("api.jobs.job_events").asyncio(job.id, client=client)
            assert isinstance(events, str) and "event: end" in events
            job = await part("api.jobs.get_job").asyncio(job.id, client=client)
            assert job.status == models.JobStatus("succeeded") and job.progress.fraction == 1.0
            video = await part("api.results.files").asyncio("a.mp4", client=client)
            assert video.payload.read() == b"a video"
            waited = await part("api.synchronous.generate").asyncio(
                client=client, body=models.JobRequest.from_dict(body("b"))
            )
            assert isinstance(waited, models.GenerateResult) and waited.error is None
        await runner.drain()
        await runner.aclose()


async def test_a_generated_client_has_a_type_for_errors_and_batches(
    door: Door, generated: ModuleType
) -> None:
    models = part("models")
    async with serving(door.app) as server:
        base = str(server.base_url).rstrip("/")
        async with generated.AuthenticatedClient(base_url=base, token=KEY) as client:
            missing = await part("api.jobs.get_job").asyncio("none", client=client)
            assert isinstance(missing, models.Problem)
            assert (missing.code, missing.retryable) == ("job_not_found", False)
            sent = models.BatchCreate.from_dict({"jobs": [body("a"), body("b")]})
            batch = await part("api.batches.create_batch").asyncio(client=client, body=sent)
            assert isinstance(batch, models.Batch) and batch.counts.queued == 2
            cancelled = await part("api.batches.cancel_batch").asyncio(batch.id, client=client)
            assert cancelled.detail == "Cancellation requested"
            page = await part("api.jobs.list_jobs").asyncio(client=client, limit=1)
            assert isinstance(page, models.JobPage) and page.next_cursor
        async with generated.Client(base_url=base) as stranger:
            refused = await part("api.jobs.list_jobs").asyncio(client=stranger)
            assert isinstance(refused, models.Problem) and refused.code == "key_missing"
