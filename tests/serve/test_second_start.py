"""Ray's own processes sometimes do not come up on a machine that is short of time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from tests.serve.running import running_app

# Ray waits half a minute for its raylet, and then the start begins again.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Ray starts the raylet by way of a profiler if it is told to: `valgrind --tool=callgrind raylet …`.
# This one lets the first raylet end at once, as the kernel does that kills it for memory.
PROFILER = """#!/bin/sh
mkdir "{failed}" 2>/dev/null && exit 1
shift
exec "$@"
"""


def raylets() -> set[psutil.Process]:
    """Return the raylets that this process has started, by way of launchers."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "raylet":
                found[process] = process.ppid()
    # A child that a raylet has just forked, to become a worker, bears its name for a moment.
    pids = {process.pid for process in found}
    return {process for process, parent in found.items() if parent not in pids}


def test_a_ray_that_does_not_come_up_is_started_once_more(tmp_path: Path) -> None:
    failed, profiler = tmp_path / "failed", tmp_path / "valgrind"
    profiler.write_text(PROFILER.format(failed=failed))
    profiler.chmod(0o700)
    env = {"RAY_RAYLET_VALGRIND_PROFILER": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    earlier = raylets()
    with running_app(tmp_path / "app", env=env) as app:
        assert failed.is_dir()
        assert len(raylets() - earlier) == 1
        told = [line for line in app.log if "Ray did not come up and is started once more" in line]
        assert len(told) == 1, app.log
    assert raylets() == earlier
