"""The service process under load, killed with SIGKILL and started again, on SQLite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from orchestrator.store.database import Database
from tests.orchestrator.running import ADMIN_KEY, DONE, ENVIRONMENT, INTERNAL_KEY
from tests.ports import reserved_port

ROOT = Path(__file__).resolve().parents[2]
JOBS, KILLS, START_S = 60, 3, 60.0


@dataclass
class Acknowledged:
    """What the service has answered 2xx to, by job."""

    submitted: set[str] = field(default_factory=set)
    finished: dict[str, str] = field(default_factory=dict)


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service; when the context ends, kill it."""
    environment = os.environ | ENVIRONMENT
    environment |= {
        "DATABASE_URL": f"sqlite:///{folder}/orchestrator.db",
        "ORCHESTRATOR_PORT": str(port),
        "ORCHESTRATOR_LEASE_S": "5",
    }
    command = [sys.executable, "-m", "orchestrator"]
    with (folder / "log").open("ab") as log:
        service = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield service
    finally:
        service.kill()
        service.wait()


class Caller:
    """Calls the service, which may be down. It may be used by all threads."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    def __call__(self, key: str, path: str, body: dict[str, Any]) -> httpx.Response | None:
        """Return the answer; None if the service is down, or went down before it answered."""
        try:
            return self._client.post(path, json=body, headers={"X-Internal-API-Key": key})
        except httpx.HTTPError:
            return None

    def close(self) -> None:
        self._client.close()


def submit_all(call: Caller, known: Acknowledged, over: threading.Event) -> None:
    """Submit every job until it is acknowledged."""
    for number in range(JOBS):
        job_id = f"job-{number:02}"
        body = {
            "musetalk_job_id": job_id,
            "video_url": "https://media.example/v.mp4",
            "audio_url": "https://media.example/a.wav",
        }
        while not over.wait(0.02):
            answer = call(ADMIN_KEY, "/v1/avatar/jobs", body)
            if answer is not None:
                assert answer.status_code == 202, answer.text
                known.submitted.add(job_id)
                break


def work(worker_id: str, call: Caller, known: Acknowledged, over: threading.Event) -> None:
    """Claim and finish jobs, as a worker that repeats its final reports until they are answered."""
    while not over.wait(0.02):
        answer = call(INTERNAL_KEY, "/internal/main/jobs/claim", {"worker_id": worker_id})
        job = None if answer is None else answer.json()["job"]
        if job is None:
            continue
        job_id, url = job["musetalk_job_id"], f"https://files.example/{worker_id}-{job['attempt']}"
        named = {"worker_id": worker_id, "attempt": job["attempt"], "output_url": url}
        report = None
        while report is None and not over.wait(0.02):
            report = call(INTERNAL_KEY, f"/internal/jobs/{job_id}/progress", DONE | named)
        if report is not None and report.status_code == 200:
            assert job_id not in known.finished, "two results of one job were accepted"
            known.finished[job_id] = url


def stored(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Return state and result of every job, from a sound file."""
    database = Database(f"sqlite:///{folder}/orchestrator.db")
    with database.read() as tx:
        assert tx.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
        rows = tx.execute(sa.text("SELECT id, state, output_url FROM jobs")).all()
    database.close()
    return {row[0]: (row[1], row[2]) for row in rows}


@pytest.mark.slow
def test_killing_the_service_in_the_middle_of_work_loses_nothing(tmp_path: Path) -> None:
    known, over = Acknowledged(), threading.Event()
    with (
        reserved_port() as port,
        closing(Caller(port)) as call,
        ThreadPoolExecutor(4) as pool,
    ):
        threads = [pool.submit(submit_all, call, known, over)]
        threads += [pool.submit(work, f"w{number}", call, known, over) for number in range(3)]
        try:
            for kill in range(KILLS):
                wanted = (kill + 1) * JOBS // (KILLS + 2)
                with process(tmp_path, port) as service:
                    wait_until(lambda wanted=wanted: len(known.finished) >= wanted, threads)
                    service.send_signal(signal.SIGKILL)
                    service.wait()
                check(known, stored(tmp_path))
            with process(tmp_path, port) as service:
                wait_until(lambda: len(known.finished) == JOBS, threads)
                service.terminate()
                assert service.wait(30) == 0
        finally:
            over.set()
        for thread in threads:
            thread.result(30)
    found = stored(tmp_path)
    check(known, found)
    assert {state for state, _ in found.values()} == {"succeeded"}


def check(known: Acknowledged, found: dict[str, tuple[str, str | None]]) -> None:
    """Compare what was acknowledged with what is stored."""
    assert known.submitted <= set(found)
    for job_id, url in dict(known.finished).items():
        assert found[job_id] == ("succeeded", url)


def wait_until(is_true: Any, threads: list[Any]) -> None:
    deadline = time.monotonic() + START_S
    while not is_true():
        for thread in threads:
            if thread.done():
                thread.result()
        assert time.monotonic() < deadline
        time.sleep(0.01)
