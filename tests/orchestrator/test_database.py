"""The tables after all migrations, and connections, on both databases."""

from __future__ import annotations

from collections import Counter

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orchestrator.store import migrate
from orchestrator.store.database import open_engine
from orchestrator.store.errors import SchemaTooNew, StoreUnavailable
from orchestrator.store.tables import metadata
from orchestrator.store.values import JobFilter, ListedJob, Progress
from tests.orchestrator.databases import Bench, new_job
from tests.orchestrator.steps import claimed, heartbeat, name_of


def test_migrated_tables_are_those_that_the_code_uses(bench: Bench) -> None:
    with bench.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_second_start_changes_nothing(bench: Bench) -> None:
    migrate.upgrade(bench.database.engine)


def test_a_newer_database_is_refused_in_a_sentence(bench: Bench) -> None:
    with bench.database.write() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = 'from the future'"))
    with pytest.raises(SchemaTooNew, match="newer release"):
        migrate.upgrade(bench.database.engine)


def test_a_running_job_without_a_lease_cannot_be_stored(bench: Bench) -> None:
    bench.store.submit(new_job("job-1"))
    with pytest.raises(sa.exc.IntegrityError), bench.database.write() as tx:
        tx.execute(sa.text("UPDATE jobs SET state = 'running'"))


def test_a_database_that_cannot_be_opened_is_named_in_a_sentence() -> None:
    engine = open_engine("sqlite:////nowhere/orchestrator.db")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        migrate.upgrade(engine)


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://h/d"])
def test_an_address_of_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        open_engine(url)


def test_connections_that_the_server_ends_are_replaced(bench: Bench) -> None:
    if bench.database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no server that could end connections")
    end_all = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    bench.store.submit(new_job("job-1"))
    other = sa.create_engine(bench.database.engine.url, poolclass=sa.NullPool)
    with pytest.raises(StoreUnavailable), bench.database.write() as tx:
        tx.execute(sa.text("UPDATE jobs SET priority = 9"))
        with other.connect() as connection:
            connection.execute(end_all)
        tx.execute(sa.text("SELECT 1"))
    assert bench.store.get("job-1").priority == 5  # nothing of the transaction was stored
    with other.connect() as connection:
        connection.execute(end_all)
    assert bench.store.submit(new_job("job-2"))[1]


def test_the_calls_that_workers_make_most_take_few_exchanges_with_the_server(bench: Bench) -> None:
    if bench.database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite is in this process")
    for number in range(3):
        bench.store.submit(new_job(f"job-{number}", client=f"client-{number}"))
    lease = claimed(bench)
    beat = heartbeat("w1", ListedJob(lease.job.id, lease.attempt))
    bench.store.progress(name_of(lease), Progress(0.1, "inferring"))
    done: Counter[str] = Counter()

    def count(*_: object) -> None:
        done["exchanges"] += 1

    engine = bench.database.engine
    for event in ("before_cursor_execute", "commit"):
        sa.event.listen(engine, event, count)
    bench.store.progress(name_of(lease), Progress(0.2, "inferring", {"frames_done": 3}))
    assert done.pop("exchanges") == 3
    bench.store.beat(beat)
    assert done.pop("exchanges") == 5
    claimed(bench, "w2")
    assert done.pop("exchanges") == 11


def test_readers_do_not_wait_for_a_writer(bench: Bench) -> None:
    with bench.database.write() as tx:
        tx.execute(sa.text("UPDATE virtual_clock SET time = 1"))
        assert bench.store.page(JobFilter(), 1).jobs == ()
