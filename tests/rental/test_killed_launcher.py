"""A launcher that is killed at any instant leaves no machine that nobody knows of."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.rental.ledger import RentState
from tests.rental.conftest import FAKES, opened
from tests.rental.launching import launch

KILLS = 25
STEPS = 24  # of HTTP: before and after what each request does


class KillAfter:
    """Counts the steps of a vendor, and lets the test know when one is reached."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self.is_reached = threading.Event()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.is_reached.set()
            time.sleep(random.random() * 0.02)  # the kill comes before, during or after this


@contextlib.contextmanager
def launcher(vendor: str, url: str, ledger) -> Iterator[multiprocessing.Process]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rental.launching"])
    process = context.Process(target=launch, args=(vendor, url, ledger))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(20)
        process.close()


@pytest.fixture(scope="module", autouse=True)
def no_fork_server_left() -> Iterator[None]:
    yield
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["runpod", "octaspace"], ids=["names", "no_names"])
def test_after_a_kill_every_machine_is_in_the_ledger_or_swept(vendor, tmp_path):
    file = tmp_path / "ledger.sqlite"
    with opened(FAKES[vendor], tmp_path) as account:
        theirs = account.fake.foreign()
        for _ in range(KILLS):
            step = account.fake.on_step = KillAfter(random.randint(1, STEPS))
            with launcher(vendor, account.fake.url, file):
                assert step.is_reached.wait(60)
                time.sleep(random.random() * 0.02)
            account.fake.on_step = lambda: None
            account.rentals.sweep("prod")
            known = {
                rent.instance_id for rent in account.ledger.live() if rent.state is RentState.RENTED
            }
            assert account.named_machines() - {theirs} <= known
            for one in account.rentals.list("prod"):
                account.rentals.destroy(one.instance_id)
            assert account.named_machines() == {theirs}
