"""The pauses between launches that fail."""

from __future__ import annotations

import pytest

from cluster.ray_up.pauses import FIRST_S, JITTER, LONGEST_S, Pauses


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pauses(clock: Clock) -> Pauses:
    return Pauses(clock, spread=lambda: 0.0)


def test_pauses_double_up_to_a_quarter_of_an_hour(pauses: Pauses) -> None:
    found = [pauses.failed("ada", "none") for _ in range(40)]
    assert found[:4] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert found[-1] == LONGEST_S


def test_a_pause_ends_and_belongs_to_one_node_type(pauses: Pauses, clock: Clock) -> None:
    pauses.failed("ada", "no machine is free")
    assert (pauses.left_s("ada"), pauses.left_s("ampere")) == (FIRST_S, 0.0)
    assert pauses.reason("ada") == "no machine is free"
    clock.now += FIRST_S
    assert pauses.left_s("ada") == 0.0


def test_the_first_machine_ends_the_pauses(pauses: Pauses) -> None:
    for _ in range(5):
        pauses.failed("ada", "none")
    pauses.succeeded("ada")
    assert (pauses.left_s("ada"), pauses.reason("ada")) == (0.0, "")
    assert pauses.failed("ada", "none") == FIRST_S


def test_a_longer_pause_that_the_vendor_asks_for_is_kept(pauses: Pauses) -> None:
    assert pauses.failed("ada", "slow down", at_least_s=300.0) == 300.0


def test_pauses_are_spread(clock: Clock) -> None:
    assert Pauses(clock, lambda: 1.0).failed("ada", "none") == FIRST_S * (1 + JITTER)
