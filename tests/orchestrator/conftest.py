"""Fixtures for the store and the service, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.databases import (
    RULES,
    Bench,
    PostgresServer,
    open_bench,
    postgres_server,
    why_no_postgres,
)
from tests.orchestrator.running import Running, running_service

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | None]:
    """A PostgreSQL server for the whole session; None for SQLite, which needs none."""
    if request.param == "sqlite":
        yield None
        return
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    with postgres_server() as started:
        yield started


@pytest.fixture
def database_url(server: PostgresServer | None, tmp_path: Path) -> str:
    """The address of an empty database, of each kind."""
    if server is None:
        return f"sqlite:///{tmp_path}/orchestrator.db"
    return server.create(f"test_{next(_numbers)}")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """A store with the newest tables."""
    opened = open_bench(database_url, RULES)
    yield opened
    opened.store.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    """A running service on a SQLite file of its own."""
    opened = open_bench(f"sqlite:///{tmp_path}/orchestrator.db", RULES)
    with running_service(opened) as running:
        yield running
