"""Signed outputs from claim to reader: our worker without storage keys, and an S3 server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.outputs.signature import presign
from orchestrator.service.settings import SettingsError, read_settings
from serve_app.contract.outcomes import Outcome, Success
from serve_app.contract.requests import JobRequest
from serve_app.net.addresses import AddressPolicy
from serve_app.outputs.signed import SignedStore
from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.contract.worker_rig import OPTIONS, Desk, ProgressCallback, worker_rig
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.object_store import B2, variables_of
from tests.orchestrator.running import DONE, Running, assert_error, running_service
from tests.orchestrator.test_our_worker import rig_for, until

LOCAL = AddressPolicy(frozenset({"127.0.0.1"}))
VIDEO, SIDECAR = b"video" * 1000, b'{"musetalk_job_id": "job"}'
KEYLESS = replace(OPTIONS, has_storage=False)


@contextmanager
def publishing(files: SqliteFiles, folder: Path, endpoint: str, **more: str) -> Iterator[Running]:
    variables = variables_of(endpoint, **more)
    rules = replace(RULES, upload_s=read_settings(variables).rules().upload_s)
    with running_service(open_bench(files.new(folder), rules), **variables) as running:
        yield running


@pytest.fixture
def service(sqlite_files: SqliteFiles, tmp_path: Path, s3_server: str) -> Iterator[Running]:
    """A service with a bucket, below a prefix of this test."""
    with publishing(sqlite_files, tmp_path, s3_server, prefix=tmp_path.name) as running:
        yield running


def uploads_of(service: Running, job_id: str, attempt: int) -> list[str]:
    """Return the suffixes of what is left of an attempt's uploads."""
    settings = service.services.settings.bucket()
    assert settings is not None
    left = []
    for suffix in (".mp4", ".json"):
        url = settings.url_of(settings.attempt_key(job_id, attempt, suffix))
        signed = presign("HEAD", url, settings.credentials, datetime.now(UTC), expires_s=60)
        if httpx.head(signed).status_code == 200:
            left.append(suffix)
    return left


def put(job: dict[str, Any], video: bytes = VIDEO) -> None:
    """Upload as a worker does that has nothing but its claim."""
    output = job["output"]
    for url, content in ((output["video_put_url"], video), (output["sidecar_put_url"], SIDECAR)):
        assert httpx.put(url, content=content, headers=output["headers"]).status_code == 200


def done(job: dict[str, Any], size_bytes: int = len(VIDEO)) -> dict[str, Any]:
    return {**DONE, "attempt": job["attempt"], "bytes": size_bytes, "sha256": "0" * 64}


def claimed(service: Running, job_id: str, worker_id: str = "w1") -> dict[str, Any]:
    service.submit(job_id)
    job = service.claim(worker_id)
    assert job is not None
    return job


def content_of(service: Running, job_id: str) -> bytes:
    """Read a job's output as a client does."""
    url = service.admin.get(f"/v1/avatar/jobs/{job_id}").json()["output_url"]
    return httpx.get(url).raise_for_status().content


@pytest.mark.parametrize("is_buffer", [False, True], ids=["main", "buffer"])
async def test_a_worker_without_storage_uploads_to_the_addresses_of_its_claim(
    service: Running, tmp_path: Path, is_buffer: bool
) -> None:
    desk = Desk()

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        addresses = desk.submissions[-1].output
        assert addresses is not None
        video = tmp_path / "output.mp4"
        video.write_bytes(VIDEO)
        store = SignedStore(addresses, LOCAL)
        stored = await asyncio.to_thread(store.put, request.musetalk_job_id, video, SIDECAR)
        return Success(stored.url, {"total_time": 1.5, **stored.metrics})

    desk.job = job
    job_id = "../ä b?c#d%2F"
    await asyncio.to_thread(service.submit, job_id)
    async with rig_for(service, tmp_path, desk=desk, options=KEYLESS, is_buffer=is_buffer) as rig:
        beating = asyncio.create_task(rig.worker.beat_forever())
        await until(lambda: rig.worker._can_store is True)
        assert await rig.worker.claim_and_run()
        beating.cancel()
        await asyncio.wait({beating})
        assert rig.outbox.pending() == 0
    job_row = service.bench.store.get(job_id)
    assert (job_row.state, job_row.attempt, job_row.published_attempt) == ("succeeded", 1, 1)
    assert job_row.metrics is not None
    assert job_row.metrics["bytes"] == len(VIDEO)
    assert "?" not in (job_row.output_url or "?")  # it is signed when it is read
    [listed] = service.admin.get("/v1/avatar/jobs").json()["jobs"]
    assert httpx.get(listed["output_url"]).content == VIDEO
    assert await asyncio.to_thread(uploads_of, service, job_id, 1) == []


async def test_without_storage_nothing_is_claimed_from_the_predecessors_orchestrator(
    tmp_path: Path,
) -> None:
    with FakeOrchestrator() as fake:
        fake.add_job("job-1")
        async with worker_rig(fake, tmp_path, options=KEYLESS, is_beating=True) as rig:
            await rig.until(lambda: len(fake.of("heartbeat")) >= 3)
            assert not await rig.worker.claim_and_run()
        assert fake.of("claim") == []


def test_a_late_attempt_cannot_publish(service: Running) -> None:
    late = claimed(service, "job-1", "late")
    service.bench.store.goodbye("late", "it fell silent")
    job = service.claim("w1")
    assert job is not None
    put(job)
    first = service.report("job-1", **done(job))
    assert first.status_code == 200
    put(late, b"late")  # its address is still valid
    assert_error(service.report("job-1", "late", **done(late, 4)), 409, "job_gone")
    assert content_of(service, "job-1") == VIDEO
    again = service.report("job-1", **done(job))  # the answer had been lost
    assert again.json().keys() == first.json().keys() == {"detail", "output_url"}
    assert httpx.get(again.json()["output_url"]).content == VIDEO


def test_uploads_of_dead_attempts_are_removed_when_their_addresses_have_expired(
    service: Running,
) -> None:
    put(claimed(service, "job-1"))
    service.bench.store.goodbye("w1", "it fell silent")
    service.sweep_uploads()
    assert uploads_of(service, "job-1", 1) == [".mp4", ".json"]
    service.bench.age(service.services.settings.upload_s + 1.0)
    service.sweep_uploads()
    assert uploads_of(service, "job-1", 1) == []
    assert service.bench.store.old_uploads() == ()


def test_a_worker_that_has_not_uploaded_what_it_reports_has_failed(service: Running) -> None:
    job = claimed(service, "job-1")
    put(job, b"half")
    assert service.report("job-1", **done(job)).status_code == 200
    row = service.bench.store.get("job-1")
    assert (row.state, row.failures) == ("queued", 1)
    assert "has uploaded 4" in (row.error or "")
    assert service.claim("w1") is None  # it goes to another machine
    assert service.claim("w2") is not None


def test_a_worker_with_storage_of_its_own_reports_as_before(service: Running) -> None:
    job = claimed(service, "job-1")
    assert service.report("job-1", **DONE, attempt=job["attempt"]).json() == {"detail": "ok"}
    row = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (row["status"], row["output_url"]) == ("succeeded", DONE["output_url"])


def test_while_the_object_store_is_away_the_job_stays_and_the_report_is_repeated(
    sqlite_files: SqliteFiles, tmp_path: Path, no_waits: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with publishing(sqlite_files, tmp_path, endpoint) as service:
        job = claimed(service, "job-1")
        answer = service.report("job-1", **done(job))
        assert_error(answer, 503, "outputs_unavailable")
        assert answer.headers["Retry-After"]
        service.bench.age(60.0)  # longer than a lease: the service holds the job now
        for _ in range(3):
            beat = {"status": "idle", "worker_type": "main", "jobs": []}
            service.worker.post("/internal/main/workers/w1/heartbeat", json=beat)
        service.bench.store.goodbye("w1", "it was stopped")
        assert not service.bench.store.expire()
        row = service.bench.store.get("job-1")
        assert (row.state, row.phase) == ("running", "publishing")
        service.bench.age(service.bench.store.rules.publish_lease_s)
        assert len(service.bench.store.expire()) == 1


def test_half_of_the_settings_of_a_bucket_are_refused() -> None:
    for left_out in variables_of(B2.endpoint):
        variables = {k: v for k, v in variables_of(B2.endpoint).items() if k != left_out}
        with pytest.raises(SettingsError, match="set all of ORCHESTRATOR_OUTPUT_ENDPOINT"):
            read_settings(variables)
    settings = read_settings(variables_of(B2.endpoint)).bucket()
    assert settings == B2
    assert settings.credentials.region == "us-west-004"
