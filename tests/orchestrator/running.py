"""The service on a real socket, in a thread of the test."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from orchestrator.server import Server, new_server
from orchestrator.service.errors import HINTS
from orchestrator.service.fleet_file import FleetPlan
from orchestrator.service.services import Services
from orchestrator.service.settings import read_settings
from tests.orchestrator.databases import Bench

WAIT_S = 60.0  # PostgreSQL and the service share the machine with other tests
INTERNAL_KEY, ADMIN_KEY = "internal-key-of-the-tests", "admin-key-of-the-tests"
ENVIRONMENT = {"INTERNAL_API_KEY": INTERNAL_KEY, "ORCHESTRATOR_ADMIN_KEY": ADMIN_KEY}


@dataclass(frozen=True, slots=True)
class Running:
    """A service that runs. `worker`, `admin` and `nobody` are callers of it."""

    url: str
    services: Services
    bench: Bench
    worker: httpx.Client
    admin: httpx.Client
    nobody: httpx.Client
    loop: asyncio.AbstractEventLoop

    def caller(self, key: str) -> httpx.Client:
        """Return a caller with another key. The test closes it."""
        return _client(self.url, key)

    def wait_for_held_claims(self, count: int) -> None:
        """Wait until so many claims wait for a job."""
        deadline = time.monotonic() + WAIT_S
        while len(self.services.bell) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def sweep_uploads(self) -> None:
        """Do what the service does once a minute."""
        uploads = self.services.uploads
        assert uploads is not None
        asyncio.run_coroutine_threadsafe(uploads.sweep(), self.loop).result(20)

    def wake_deliveries(self) -> None:
        """Let the service find out now what is due, after time has passed."""
        self.loop.call_soon_threadsafe(self.services.wake_deliveries)

    def submit(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """Submit a job as the operator and return the answer."""
        body = {
            "musetalk_job_id": job_id,
            "video_url": "https://media.example/v.mp4?signature=s",
            "audio_url": "https://media.example/a.wav?signature=s",
        }
        answer = self.admin.post("/v1/avatar/jobs", json=body | fields)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def status(self, job_id: str) -> str:
        """Return the state of a job."""
        return str(self.admin.get(f"/v1/avatar/jobs/{job_id}").json()["state"])

    def wait_for_status(self, job_id: str, status: str) -> None:
        """Wait until a job has a state."""
        deadline = time.monotonic() + WAIT_S
        while self.status(job_id) != status:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def claim(self, worker_id: str = "w1", **fields: Any) -> dict[str, Any] | None:
        """Claim as a main worker."""
        body = {"worker_id": worker_id, "worker_type": "main", "gpu_class": "RTX-3090-24GB"}
        answer = self.worker.post("/internal/main/jobs/claim", json=body | fields)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] | None = answer.json()["job"]
        return job

    def report(self, job_id: str, worker_id: str = "w1", **fields: Any) -> httpx.Response:
        """Report as a main worker."""
        body: dict[str, Any] = {
            "status": "running",
            "progress": 0.5,
            "phase": "inferring",
            "worker_id": worker_id,
            "metrics": None,
            "error": None,
        }
        return self.worker.post(f"/internal/jobs/{job_id}/progress", json=body | fields)


DONE: dict[str, Any] = {
    "status": "succeeded",
    "progress": 1.0,
    "phase": "completed",
    "metrics": {"total_time": 1.5},
    "output_url": "https://files.example/job.mp4",
}


@contextmanager
def running_service(
    bench: Bench,
    fleet_plan: FleetPlan | None = None,
    host: str = "127.0.0.1",
    **variables: str,
) -> Iterator[Running]:
    """Serve a store on a free port of `host`, of this machine. The store is closed with it."""
    settings = read_settings(ENVIRONMENT | variables)
    services = Services(settings, bench.store, fleet_plan)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    shown_host = f"[{host}]" if ":" in host else host
    url = f"http://{shown_host}:{listener.getsockname()[1]}"
    server = new_server(settings, services)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=_run, args=(loop, server, listener), name="orchestrator", daemon=True
    )
    thread.start()
    clients = [_client(url, key) for key in (INTERNAL_KEY, ADMIN_KEY, None)]
    try:
        yield Running(url, services, bench, *clients, loop)
    finally:
        loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
        thread.join(20)
        listener.close()
        for client in clients:
            client.close()
        assert not thread.is_alive()


def _run(loop: asyncio.AbstractEventLoop, server: Server, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(server.serve([listener]))


def _client(url: str, key: str | None) -> httpx.Client:
    headers = {} if key is None else {"X-Internal-API-Key": key}
    return httpx.Client(base_url=url, headers=headers, timeout=40)


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body["status"] == "failed"
    assert body["hint"] == HINTS[code]
    assert body["error_message"].endswith(".")
    assert {"error_type", "stage", "details", "retryable", "stage_times", "input"} <= set(body)
