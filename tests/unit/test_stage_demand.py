"""A CPU stage grows when calls keep waiting for its threads, and shrinks only when it is idle."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serve_app.scaling.stage_demand import StageLoad, StageWish, stage_wish
from serve_app.scaling.wishes import Bounds, Pace, Wish

PACE = Pace(drain_s=60.0, idle_loads=5.0, idle_s=60.0)
FINISHER = StageLoad(threads=8, load_s=4.0, bounds=Bounds(1, 4), running=1)
FULL = replace(FINISHER, calls=20, calls_waiting=12)


def after(*looks: tuple[float, StageLoad]) -> int:
    wish = None
    for now_s, stage in looks:
        wish = stage_wish(wish, stage, PACE, now_s)
    assert wish is not None
    return wish.wish.replicas


def test_calls_that_keep_waiting_start_as_many_replicas_as_they_need():
    assert after((0.0, FULL), (3.9, FULL)) == 1
    assert after((0.0, FULL), (4.0, FULL)) == 3  # 20 calls for 8 threads each


def test_a_burst_that_is_soon_worked_off_starts_nothing():
    idle = replace(FINISHER, calls=3)
    assert after((0.0, FULL), (3.0, idle), (5.0, FULL), (8.0, FULL)) == 1


def test_what_starts_is_not_given_up_while_calls_wait():
    starting = replace(FULL, starting=2)
    looks = [(float(second), starting) for second in range(1000)]
    assert after((0.0, FULL), (4.0, FULL), *looks) == 3


def test_it_shrinks_after_long_idleness_and_never_while_it_works():
    spare = replace(FINISHER, running=4)
    working = replace(spare, calls=1)
    assert after((0.0, spare), (59.0, spare)) == 4
    assert after((0.0, spare), (60.0, working)) == 4
    assert after((0.0, spare), (60.0, spare)) == 1
    assert after((0.0, working), (60.0, working), (61.0, spare)) == 1


@given(
    calls=st.integers(0, 500),
    waiting=st.integers(0, 500),
    running=st.integers(0, 9),
    starting=st.integers(0, 9),
    wanted=st.integers(0, 9),
)
def test_never_outside_the_bounds(
    calls: int, waiting: int, running: int, starting: int, wanted: int
):
    stage = replace(
        FINISHER,
        running=running,
        starting=starting,
        calls=calls + waiting,
        calls_waiting=waiting,
    )
    before = StageWish(Wish(stage.bounds.applied(wanted)), short_since=-100.0)
    assert 1 <= stage_wish(before, stage, PACE, 0.0).wish.replicas <= 4
