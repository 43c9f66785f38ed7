"""Databases of every released schema go forward to the newest one, with their jobs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orchestrator.store import migrate
from orchestrator.store.database import Database
from orchestrator.store.errors import StoreUnavailable
from orchestrator.store.store import JobStore
from orchestrator.store.tables import metadata
from orchestrator.store.values import AttemptName, Beat, ListedJob
from tests.orchestrator.databases import (
    RULES,
    PostgresServer,
    new_job,
    postgres_server,
    why_no_postgres,
    worker,
)
from tests.orchestrator.steps import DONE

# What a release with the first schema stored, as its own SQL. This text does not follow the code.
FIRST = """
INSERT INTO jobs (id, client, state, video_url, audio_url, content_key, metadata, priority,
    min_vram_gb, architectures, due_at, run, attempt, failures, interruptions, worker_id, leased_at,
    lease_until, unlisted, progress, phase, counts, output_url, metrics, created_at, queued_at,
    updated_at, ended_at)
VALUES
    ('waits', 'a', 'queued', 'https://m/v?s=1', 'https://m/a?s=1', 'CONTENT', '{"order": 7}',
     9, 0, '', 1000, 1, 0, 0, 0, NULL, NULL, NULL, 0, 0, 'queued', NULL, NULL, NULL,
     1000, 1000, 1000, NULL),
    ('runs', 'a', 'running', 'https://m/v?s=1', 'https://m/a?s=1', 'CONTENT', NULL, 5,
     8, ',ada,', 1000, 1, 2, 1, 0, 'w1', 99999999999, 99999999999, 0, 0.5, 'inferring',
     '{"frames_total": 100}', NULL, NULL, 1000, 1000, 1000, NULL),
    ('done', 'b', 'succeeded', 'https://m/v?s=1', 'https://m/a?s=1', 'CONTENT', NULL, 5,
     0, '', 1000, 1, 1, 0, 0, NULL, NULL, NULL, 0, 1, 'completed', NULL, 'https://f/done.mp4',
     '{"total_time": 2.5}', 1000, 1000, 1000, 99999999999);
INSERT INTO workers (id, worker_type, provider, gpu_class, capacity, status, is_drained,
    first_seen_at, seen_at)
VALUES ('w1', 'main', 'salad', 'RTX-4090-24GB', 1, 'busy', FALSE, 1000, 1000);
INSERT INTO attempts (job_id, number, run, worker_id, worker_type, gpu_class, started_at, ended_at,
    ending, error)
VALUES
    ('runs', 1, 1, 'w0', 'main', 'RTX-4090-24GB', 1000, 1001, 'failed', 'The GPU fell over.'),
    ('runs', 2, 1, 'w1', 'main', 'RTX-4090-24GB', 1002, NULL, NULL, NULL),
    ('done', 1, 1, 'w0', 'main', 'RTX-4090-24GB', 1000, 1001, 'succeeded', NULL);
INSERT INTO events (job_id, number, kind, happened_at, attempt, facts)
VALUES ('waits', 1, 'submitted', 1000, 0, NULL);
INSERT INTO idempotency_keys (client, key, job_id) VALUES ('a', 'key-1', 'waits');
INSERT INTO accounts (client, weight, used) VALUES ('a', 2, 60);
"""
KEY_OF_CONTENT = "83ce55b13fef00df0848ecc347eee196c06235bbcd28336f5c53a51f0c443832"
RELEASED = {"0001": FIRST.replace("CONTENT", KEY_OF_CONTENT)}
SAME = {"video_url": "https://m/v?s=2", "audio_url": "https://m/a?s=2"}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/old.db"
    server = request.getfixturevalue("server")
    server.create("without_tables")
    return str(server.url("without_tables"))


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of one test, which may stop and start it."""
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    with postgres_server() as started:
        yield started


@pytest.mark.parametrize("revision", RELEASED)
def test_an_old_database_goes_forward_with_its_jobs(empty_url: str, revision: str) -> None:
    database = Database(empty_url)
    migrate.upgrade(database.engine, revision)
    with database.write() as tx:
        for statement in RELEASED[revision].strip().rstrip(";").split(";\n"):
            tx.connection.exec_driver_sql(statement)
    database.close()
    with JobStore.open(empty_url, RULES) as store:
        assert store.get("done").output_url == "https://f/done.mp4"
        assert store.get("done").metrics == {"total_time": 2.5}
        assert store.get("waits").metadata == {"order": 7}
        assert [one.error for one in store.attempts("runs")] == ["The GPU fell over.", None]
        assert store.follow("waits", 0)[1][0].kind == "submitted"
        # Work goes on: the lease is renewed, the result accepted, and the next job claimed.
        facts = worker("w1")
        assert store.beat(Beat(facts, True, jobs=(ListedJob("runs", 2),))).cancel == ()
        assert store.finish(AttemptName("runs", "w1", 2), DONE)
        lease = store.claim(facts)
        assert lease is not None
        assert lease.job.id == "waits"
        again, is_new = store.submit(new_job("x", client="a", idempotency_key="key-1", **SAME))
        assert (again.id, is_new) == ("waits", False)
    check = Database(empty_url)
    with check.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    check.close()


@pytest.mark.slow
def test_a_restart_of_postgresql_is_survived(server: PostgresServer, tmp_path: Path) -> None:
    with JobStore.open(server.new(tmp_path), RULES) as store:
        store.submit(new_job("job-1"))
        lease = store.claim(worker("w1"))
        assert lease is not None
        server.restart()
        assert store.get("job-1").worker_id == "w1"  # the first call after it, on a dead connection
        server.restart()
        assert store.finish(AttemptName("job-1", "w1", lease.attempt), DONE)
        assert store.submit(new_job("job-2"))[1]


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_transaction_stores_nothing_of_it(
    server: PostgresServer, tmp_path: Path
) -> None:
    database = Database(server.new(tmp_path))
    with JobStore(database, RULES) as store:
        store.submit(new_job("job-1"))
        with pytest.raises(StoreUnavailable), database.write() as tx:
            tx.execute(sa.text("UPDATE jobs SET priority = 9"))
            server.restart(signal.SIGQUIT)
            tx.execute(sa.text("SELECT 1"))
        assert store.get("job-1").priority == 5
        assert store.claim(worker("w1")) is not None
