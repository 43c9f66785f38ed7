"""Ray's own processes sometimes do not come up on a machine that is short of time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import psutil
import pytest

from tests.serve.running import running_app
from tests.waiting import until

pytestmark = pytest.mark.slow

RAYLET_S = 60.0


def raylets() -> set[psutil.Process]:
    """Return the raylets that this process has started, by way of launchers."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "raylet":
                found.add(process)
    return found


def test_a_ray_that_does_not_come_up_is_started_once_more(tmp_path: Path) -> None:
    earlier = raylets()
    killed: list[psutil.Process] = []

    def kill_the_first() -> None:
        [raylet] = until(lambda: raylets() - earlier, "no raylet was started", RAYLET_S)
        raylet.kill()
        killed.append(raylet)

    killing = threading.Thread(target=kill_the_first)
    killing.start()
    with running_app(tmp_path) as app:
        killing.join()
        [running] = raylets() - earlier
        assert running not in killed
        told = [line for line in app.log if "Ray did not come up and is started once more" in line]
        assert len(told) == 1, app.log
    assert raylets() == earlier
