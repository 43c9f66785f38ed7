"""The registry of earlier releases: what it had is in the job store after the first start."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import ABANDONED, Origin, SubmissionOptions
from serve_app.jobs.registry import JobRegistry

# As the last release with these tables made them.
SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, request TEXT NOT NULL, content_key TEXT NOT NULL, origin TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    run INTEGER NOT NULL DEFAULT 1,
    attempt INTEGER NOT NULL DEFAULT 0, attempt_id TEXT, lost_attempt_id TEXT,
    lease_until REAL, wanted_until REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0, progress TEXT NOT NULL, outcome TEXT,
    metadata TEXT, warnings TEXT NOT NULL DEFAULT '[]', queue_job_id TEXT
);
CREATE TABLE idempotency_keys (key TEXT PRIMARY KEY, job_id TEXT NOT NULL);
CREATE TABLE subscribers (
    job_id TEXT NOT NULL, webhook_url TEXT NOT NULL, metadata TEXT,
    notified INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (job_id, webhook_url)
);
CREATE TABLE phases (
    job_id TEXT NOT NULL, number INTEGER NOT NULL, attempt INTEGER NOT NULL,
    happened REAL NOT NULL, progress TEXT NOT NULL, PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
CREATE TABLE probe (room BLOB NOT NULL);
PRAGMA user_version = 3;
"""
NOW = 1000.0
HALF = Progress(Phase.INFERRING, 0.5, 5, 10, {"download": 0.4}, 3.0)
SUCCESS = Success("/files/done.mp4", {"total_time": 1.0}, ("Two faces were seen.",))
FAILURE = Failure("media_error", "no face", "no_face", "preprocessing", False, 422)


def request(job_id: str) -> JobRequest:
    return JobRequest(
        musetalk_job_id=job_id,
        video_url="https://h/v.mp4?sig=1",
        audio_url="https://h/a.wav",
        resolution="720p",
        params={"crf": 20},
    )


def enter(
    db: sqlite3.Connection,
    status: str,
    outcome: Outcome | None = None,
    *,
    name: str | None = None,
    origin: str = "async",
) -> None:
    """Store a job as the old registry did."""
    job_id = name or status
    told = None
    if outcome is not None:
        told = json.dumps({"kind": type(outcome).__name__, **asdict(outcome)})
    is_running = status == "running"
    values = {
        "id": job_id,
        "request": request(job_id).model_dump_json(),
        "content_key": "another digest",
        "origin": origin,
        "status": status,
        "created": NOW,
        "updated": NOW + 1,
        "attempt": 1 if is_running else 0,
        "attempt_id": "0123" if is_running else None,
        "lease_until": NOW + 20 if is_running else None,
        "wanted_until": NOW + 5,
        "progress": json.dumps(asdict(HALF if is_running else Progress(Phase.QUEUED, 0.0))),
        "outcome": told,
        "metadata": json.dumps({"who": "me"}),
        "warnings": json.dumps(["It is odd."]),
        "queue_job_id": "salad-7",
    }
    marks = ", ".join(f":{column}" for column in values)
    db.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of the old registry with jobs in all states. The log is not folded in yet."""
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)
        enter(db, "queued")
        enter(db, "running")
        enter(db, "running", name="claimed", origin="claimed")
        enter(db, "succeeded", SUCCESS)
        enter(db, "failed", FAILURE)
        enter(db, "failed", ABANDONED, name="abandoned")
        hook = ("succeeded", "https://hook/1", json.dumps({"to": 1}), 0)
        db.execute("INSERT INTO subscribers VALUES (?, ?, ?, ?)", hook)
        db.execute("INSERT INTO idempotency_keys VALUES ('key', 'queued')")
        phase = ("running", 1, 1, NOW, json.dumps(asdict(HALF)))
        db.execute("INSERT INTO phases VALUES (?, ?, ?, ?, ?)", phase)
        db.commit()
    return path


def opened(path: Path, now: float) -> JobRegistry:
    return JobRegistry(path, lambda: now)


def test_every_job_is_there_with_all_that_it_had(path: Path) -> None:
    registry = opened(path, NOW + 10)
    found = {job.id: job for job in registry.page(None, 10).jobs}
    assert {name: job.status for name, job in found.items()} == {
        "queued": "queued",
        "running": "running",
        "claimed": "running",
        "succeeded": "succeeded",
        "failed": "failed",
        "abandoned": "failed",
    }
    for name, job in found.items():
        assert job.request == request(name)
        assert (job.metadata, job.warnings) == ({"who": "me"}, ("It is odd.",))
        assert (job.queue_job_id, job.created, job.updated) == ("salad-7", NOW, NOW + 1)
    assert found["succeeded"].outcome == SUCCESS
    assert (found["failed"].outcome, found["abandoned"].outcome) == (FAILURE, ABANDONED)
    assert found["running"].progress == HALF
    [change] = registry.follow("running", 0).events
    assert (change.progress, change.attempt) == (HALF, 1)
    webhook = registry.take_delivery(60.0)
    assert (webhook.snapshot["id"], webhook.snapshot["metadata"]) == ("succeeded", {"to": 1})
    assert registry.take_delivery(60.0) is None
    joining = SubmissionOptions(idempotency_key="key")
    job, is_new = registry.submit(request("other"), Origin.ASYNC, 10, joining)
    assert (job.id, is_new) == ("queued", False)
    registry.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["jobs.sqlite3"]


def test_a_job_that_ran_is_started_again_when_its_lease_has_expired(path: Path) -> None:
    registry = opened(path, NOW + 10)
    assert registry.take(20.0, 3).id == "queued"
    assert registry.take(20.0, 3) is None
    registry.close()
    registry = opened(path, NOW + 21)
    again = registry.take(20.0, 3)
    assert (again.id, again.attempt, again.lost_attempt_id) == ("running", 2, "0123")
    assert registry.take(20.0, 3) is None  # a claimed job waits for its claim
    assert registry.take(20.0, 3, only="claimed").attempt == 2
    registry.close()


def test_a_start_that_died_half_way_is_completed_by_the_next(path: Path) -> None:
    """All jobs are copied in one transaction, and the old file is removed after that."""
    old = path.read_bytes()
    opened(path, NOW + 10).close()
    path.with_name("jobs.sqlite3.old").write_bytes(old)  # it died before that
    registry = opened(path, NOW + 10)
    assert len(registry.page(None, 10).jobs) == 6
    registry.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["jobs.sqlite3"]


@pytest.mark.parametrize("version", [0, 2, 4])
def test_a_file_that_cannot_be_read_is_kept(tmp_path: Path, version: int, caplog) -> None:
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, state TEXT)")
        db.execute("INSERT INTO jobs VALUES ('a', 'queued')")
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
    registry = opened(path, NOW)
    assert registry.submit(request("b"), Origin.ASYNC, 10)[1]
    registry.close()
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3.unreadable")) as kept:
        assert kept.execute("SELECT id FROM jobs").fetchall() == [("a",)]
    assert "its file is kept" in caplog.text


def test_a_file_that_is_no_database_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"not a database" * 100)
    opened(path, NOW).close()
    kept = tmp_path / "jobs.sqlite3.unreadable"
    assert kept.read_bytes() == b"not a database" * 100
