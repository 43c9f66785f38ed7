"""The least average pace of a download, with time that stands still. Mend 4.5."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.inputs.pace import Pace


def lasts(pace: Pace, seconds: int, bytes_per_s: int, start: int = 0) -> int:
    """Return for how many seconds a sender of that rate is borne with."""
    for second in range(start, start + seconds):
        if pace.deadline is not None and second >= pace.deadline:
            return second - start
        pace.add(bytes_per_s, second)
    return seconds


@given(st.integers(1000, 10**9))
def test_whoever_keeps_the_pace_is_never_given_up(bytes_per_s):
    assert lasts(Pace(1000, 60, 0), 3600, bytes_per_s) == 3600


@given(st.integers(0, 499))
def test_whoever_is_twice_as_slow_is_given_up_within_two_windows(bytes_per_s):
    assert 60 <= lasts(Pace(1000, 60, 0), 3600, bytes_per_s) <= 120


def test_a_fast_start_does_not_pay_for_a_slow_end():
    pace = Pace(1000, 60, 0)
    pace.add(10**9, 1)
    assert lasts(pace, 3600, 1, start=2) <= 61


def test_without_a_least_pace_nobody_is_given_up():
    pace = Pace(0, 60, 0)
    pace.add(1, 1e9)
    assert pace.deadline is None


def test_a_pause_costs_nothing():
    pace = Pace(1000, 60, 0)
    pace.pause(1000.0)
    assert pace.deadline == 1060.0
