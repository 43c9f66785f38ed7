"""Fixtures for workers against the fake orchestrator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.fake_orchestrator import FakeOrchestrator, TlsFiles, make_tls_files


@pytest.fixture
def fake() -> Iterator[FakeOrchestrator]:
    """A running orchestrator over plain HTTP."""
    with FakeOrchestrator() as orchestrator:
        yield orchestrator


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate for 127.0.0.1 with its authority."""
    return make_tls_files(tmp_path_factory.mktemp("tls"))
