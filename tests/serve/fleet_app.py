"""A real application on Ray as a worker of a fleet, with its orchestrator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.serve.running import RunningApp, running_app

KEY = "test-internal-key"


@contextlib.contextmanager
def fleet_app(
    folder: Path, env: dict[str, str], **queue: Any
) -> Iterator[tuple[RunningApp, FakeOrchestrator]]:
    """Run a worker with these variables, and check that it keeps to the protocol."""
    with FakeOrchestrator(api_key=KEY) as orchestrator:
        variables = {"ORCHESTRATOR_BASE_URL": orchestrator.url, "WORKER_TYPE": "main", **env}
        with running_app(folder, env=variables, key=KEY, **queue) as app:
            yield app, orchestrator
        assert orchestrator.violations == []
