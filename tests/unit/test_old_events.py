"""Webhooks that an earlier release of the worker had not delivered are delivered by this one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from orchestrator.store import migrate
from orchestrator.store.database import Database
from orchestrator.store.delivery_values import Try
from serve_app.api.answers import event_data
from serve_app.contract.requests import JobRequest
from serve_app.gate.links import Links, LinkSigner
from serve_app.jobs import leases, submissions
from serve_app.jobs.job import Origin, SubmissionOptions
from serve_app.jobs.registry import JobRegistry

# The file as the last release with it made it.
SCHEMA = """
CREATE TABLE events (
    id TEXT PRIMARY KEY, url TEXT NOT NULL, body TEXT NOT NULL, created REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL
) STRICT
"""
OF_TABLES_BEFORE = sa.text("INSERT INTO subscribers VALUES (:job_id, :url, NULL, :is_notified)")
NO_LINKS = Links("http://worker", LinkSigner(b"s" * 32, 3600.0))
DATA = {"id": "a", "status": "failed", "note": "größer"}


def event(about: str, kind: str = "avatar.job.failed") -> tuple[Any, ...]:
    body = {"type": kind, "timestamp": "2026-03-01T12:30:15.250000Z", "data": {**DATA, "id": about}}
    return (f"evt_{about}", "https://hook/1?token=x", json.dumps(body), 1000.0, 2, 9000.0)


def told(registry: JobRegistry) -> list[tuple[str, str]]:
    """Return the jobs and targets of what is due."""
    taken = iter(lambda: registry.take_delivery(60.0), None)
    return [(str(one.snapshot["id"]), one.url) for one in taken if one is not None]


def enter(path: Path, *job_ids: str) -> None:
    registry = JobRegistry(path)
    for job_id in job_ids:
        job = JobRequest(musetalk_job_id=job_id, video_url="https://m/v", audio_url="https://m/a")
        registry.submit(job, Origin.ASYNC, 10)
        registry.cancel(job_id)
    registry.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A registry with the job `a`, and beside it events of that job and of a forgotten one."""
    path = tmp_path / "jobs.sqlite3"
    enter(path, "a")
    with closing(sqlite3.connect(tmp_path / "webhooks.sqlite3")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(SCHEMA)
        db.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", [event("a"), event("forgotten")]
        )
        db.commit()
    return path


def test_what_was_not_delivered_is_delivered_as_it_was(path: Path) -> None:
    registry = JobRegistry(path)
    taken = registry.take_delivery(60.0)
    assert taken is not None
    assert (taken.id, taken.url, taken.tries) == ("evt_a", "https://hook/1?token=x", 1)
    assert taken.event == "avatar.job.failed"
    assert event_data(taken, NO_LINKS) == DATA
    assert taken.created_at == 1772368215.25
    assert registry.take_delivery(60.0) is None
    assert registry.settle_delivery(taken, Try(204), None)
    assert [one.status for one in registry.deliveries("a")] == ["delivered"]
    registry.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["jobs.sqlite3"]
    reopened = JobRegistry(path)
    assert reopened.take_delivery(60.0) is None
    reopened.close()


def test_a_file_that_cannot_be_read_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = path.with_name("webhooks.sqlite3")
    file.write_bytes(b"no database at all" * 100)
    registry = JobRegistry(path)
    assert registry.take_delivery(60.0) is None
    registry.close()
    assert file.exists()
    assert "webhooks of an earlier release cannot be read" in caplog.text


def test_webhooks_of_the_tables_before_are_told_unless_they_have_been(tmp_path: Path) -> None:
    """The release before kept them in a second table, and queued them a moment after the end."""
    path = tmp_path / "jobs.sqlite3"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database.engine, "0005_batches")
    with database.write() as tx:
        for job_id in ("ended", "waits"):
            job = JobRequest(
                musetalk_job_id=job_id, video_url="https://m/v", audio_url="https://m/"
            )
            submissions.submit(tx, job, Origin.ASYNC, None, SubmissionOptions(), None)
            for url, is_notified in (("https://hook/told", True), ("https://hook/due", False)):
                values = {"job_id": job_id, "url": url, "is_notified": is_notified}
                tx.connection.execute(OF_TABLES_BEFORE, values)
        leases.cancel(tx, "ended")
    database.close()
    registry = JobRegistry(path)
    assert told(registry) == [("ended", "https://hook/due")]
    registry.cancel("waits")
    assert told(registry) == [("waits", "https://hook/due")]
    registry.close()
