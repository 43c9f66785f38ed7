"""Fixtures for the store and the service, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.databases import (
    RULES,
    Bench,
    Databases,
    SqliteFiles,
    open_bench,
    postgres_server,
    why_no_postgres,
)
from tests.orchestrator.object_store import WHY_NONE, moto_server, object_store
from tests.orchestrator.running import Running, running_service


@pytest.fixture(scope="session")
def sqlite_files(tmp_path_factory: pytest.TempPathFactory) -> SqliteFiles:
    """SQLite files with the newest tables."""
    return SqliteFiles(tmp_path_factory.mktemp("sqlite") / "template.db")


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, sqlite_files: SqliteFiles) -> Iterator[Databases]:
    """Databases of each kind. One PostgreSQL server serves the whole session."""
    if request.param == "sqlite":
        yield sqlite_files
        return
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    with postgres_server() as started:
        yield started


@pytest.fixture
def database_url(databases: Databases, tmp_path: Path) -> str:
    """The address of a database of each kind, with the newest tables and without rows."""
    return databases.new(tmp_path)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """A store of each kind."""
    opened = open_bench(database_url, RULES)
    yield opened
    opened.store.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with the bucket `videos`."""
    command = moto_server()
    if command is None:
        pytest.skip(WHY_NONE)
    with object_store(command) as address:
        yield address


@pytest.fixture
def service(sqlite_files: SqliteFiles, tmp_path: Path) -> Iterator[Running]:
    """A running service on a SQLite file of its own."""
    with running_service(open_bench(sqlite_files.new(tmp_path), RULES)) as running:
        yield running


@pytest.fixture(scope="module")
def shared_service(
    sqlite_files: SqliteFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A running service for tests that store nothing."""
    file = sqlite_files.new(tmp_path_factory.mktemp("shared"))
    with running_service(open_bench(file, RULES)) as running:
        yield running
