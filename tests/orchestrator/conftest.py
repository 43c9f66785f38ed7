"""Fixtures for the store and the service, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.values import Rules
from tests.orchestrator.databases import (
    Bench,
    PostgresServer,
    open_bench,
    postgres_server,
    why_no_postgres,
)

RULES = Rules(lease_s=30.0, listing_grace_s=2.0, max_failures=3, max_interruptions=5)
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
