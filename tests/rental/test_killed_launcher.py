"""A launcher that is killed at any instant leaves no machine that nobody knows of."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.rental.ledger import RentState
from tests.rental.conftest import FAKES, opened

ROOT = Path(__file__).resolve().parents[2]
KILLS = 25  # at each of two vendors
STEPS = 24  # of HTTP: before and after what each request does
JITTER_S = 0.02  # so that the kill comes before, during or after the step that follows


class KillAfter:
    """Counts the steps of a vendor, and lets the test know when one is reached."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self.is_reached = threading.Event()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.is_reached.set()
            time.sleep(random.random() * JITTER_S)


@pytest.fixture
def launchers():
    """The process that forks launchers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rental.launching"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["runpod", "octaspace"], ids=["names", "no_names"])
def test_after_a_kill_every_machine_is_in_the_ledger_or_swept(vendor, tmp_path, launchers):
    with opened(FAKES[vendor], tmp_path) as account:
        theirs = account.fake.foreign()
        line = json.dumps([vendor, account.fake.url, str(tmp_path / "ledger.sqlite")])
        for _ in range(KILLS):
            connections = account.fake.connections
            step = account.fake.on_step = KillAfter(random.randint(1, STEPS))
            print(line, file=launchers.stdin, flush=True)
            pid = int(launchers.stdout.readline())
            assert step.is_reached.wait(60)
            time.sleep(random.random() * JITTER_S)
            os.kill(pid, signal.SIGKILL)
            assert launchers.stdout.readline() == "gone\n"
            account.fake.on_step = lambda: None
            account.fake.wait_for_connections(connections)  # what was sent has taken effect
            account.rentals.sweep("prod")
            known = {
                rent.instance_id for rent in account.ledger.live() if rent.state is RentState.RENTED
            }
            assert account.named_machines() - {theirs} <= known
            for one in account.rentals.list("prod"):
                account.rentals.destroy(one.instance_id)
            assert account.named_machines() == {theirs}
