"""Pools grow with the waiting work at once, and shrink only after long idleness."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.scaling.demand import PoolLoad, needs, pool_wishes
from serve_app.scaling.wishes import Bounds, Pace, Wish

PACE = Pace(drain_s=60.0, idle_loads=5.0, idle_s=60.0)
ADA = PoolLoad("ada", 25.0, 30.0, usd_per_frame=1.0, bounds=Bounds(0, 8))
HOPPER = PoolLoad("hopper", 100.0, 30.0, usd_per_frame=2.0, bounds=Bounds(0, 4))

counts = st.integers(0, 12)


@st.composite
def loads(draw: st.DrawFn, name: str = "a") -> PoolLoad:
    at_least = draw(st.integers(0, 4))
    running = draw(counts)
    return PoolLoad(
        name,
        frames_per_s=draw(st.floats(0.1, 200)),
        load_s=draw(st.floats(0.1, 600)),
        usd_per_frame=draw(st.sampled_from([0.0, 0.5, 1.0])),
        bounds=Bounds(at_least, draw(st.integers(at_least, 12))),
        running=running,
        starting=draw(counts),
        replicas_at_work=draw(st.integers(0, running)),
        is_stuck=draw(st.booleans()),
        is_speed_known=draw(st.booleans()),
    )


pool_sets = st.lists(loads(), min_size=1, max_size=4).map(
    lambda pools: [replace(pool, name=str(index)) for index, pool in enumerate(pools)]
)


@given(pool_sets, st.floats(0, 1e7))
def test_never_outside_the_bounds(pools: list[PoolLoad], frames: float):
    for pool in pools:
        assert pool.bounds.at_least <= needs(pools, frames, PACE)[pool.name] <= pool.bounds.at_most


@given(pool_sets, st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_work_never_needs_fewer_replicas(pools: list[PoolLoad], frames: float, more: float):
    some, all_of_it = needs(pools, frames, PACE), needs(pools, frames + more, PACE)
    for pool in pools:
        assert all_of_it[pool.name] >= some[pool.name]


@given(pool_sets, st.floats(0, 1e6), st.floats(0, 1e4))
def test_a_pool_that_works_never_shrinks(pools: list[PoolLoad], frames: float, later_s: float):
    before = pool_wishes({}, pools, frames, PACE, 0.0)
    after = pool_wishes(before, pools, 0.0, PACE, later_s)
    for pool in pools:
        if pool.replicas_at_work:
            assert after[pool.name].replicas >= before[pool.name].replicas


def test_from_zero_the_cheapest_pool_gets_what_drains_the_work_in_time():
    # A replica of 25 frames/s draws 1500 frames in 60 s.
    assert needs([ADA, HOPPER], 1.0, PACE) == {"ada": 1, "hopper": 0}
    assert needs([ADA, HOPPER], 1500.0, PACE) == {"ada": 1, "hopper": 0}
    assert needs([ADA, HOPPER], 1501.0, PACE) == {"ada": 2, "hopper": 0}
    assert needs([ADA, HOPPER], 8 * 1500 + 1.0, PACE) == {"ada": 8, "hopper": 1}
    assert needs([ADA, HOPPER], 1e9, PACE) == {"ada": 8, "hopper": 4}


def test_a_pool_of_unknown_speed_starts_one_replica():
    unknown = replace(ADA, frames_per_s=1.0, is_speed_known=False)
    assert needs([unknown, HOPPER], 1e6, PACE) == {"ada": 1, "hopper": 0}
    assert needs([replace(unknown, running=1), HOPPER], 1e6, PACE) == {"ada": 0, "hopper": 0}


def test_what_runs_goes_on_drawing_while_another_replica_would_load():
    # Two replicas draw 25 frames/s each for 30 s of loading and 60 s after it: 4500 frames.
    running = replace(ADA, running=2, replicas_at_work=2)
    assert needs([running], 4500.0, PACE) == {"ada": 2}
    assert needs([running], 4501.0, PACE) == {"ada": 3}


def test_what_starts_is_counted_and_not_given_up_while_work_waits():
    starting = replace(ADA, starting=3)
    assert needs([starting], 3 * 1500.0, PACE) == {"ada": 3}
    assert needs([starting], 1.0, PACE) == {"ada": 3}
    assert needs([starting], 0.0, PACE) == {"ada": 0}


def test_a_pool_that_cannot_be_placed_does_not_keep_another_from_starting():
    stuck = replace(ADA, starting=2, is_stuck=True)
    assert needs([stuck, HOPPER], 1000.0, PACE) == {"ada": 2, "hopper": 1}


def test_a_pool_that_is_switched_off_gets_nothing_and_ends_its_work():
    off = replace(ADA, bounds=Bounds(0, 0), running=2, replicas_at_work=1)
    assert needs([off, HOPPER], 1000.0, PACE) == {"ada": 0, "hopper": 1}
    before = {"ada": Wish(2)}
    assert pool_wishes(before, [off], 0.0, PACE, 0.0)["ada"].replicas == 2
    idle = replace(off, replicas_at_work=0)
    assert pool_wishes(before, [idle], 0.0, PACE, 0.0)["ada"].replicas == 0


def test_an_idle_pool_shrinks_after_several_of_its_load_times():
    before = {"ada": Wish(4)}
    idle = replace(ADA, running=4)
    before = pool_wishes(before, [idle], 0.0, PACE, 100.0)
    for now_s in (101.0, 200.0, 249.0):  # five loads of 30 s are 150 s
        before = pool_wishes(before, [idle], 0.0, PACE, now_s)
        assert before["ada"].replicas == 4
    assert pool_wishes(before, [idle], 0.0, PACE, 250.0)["ada"].replicas == 0


def test_a_pool_shrinks_to_the_most_that_worked_lately():
    idle, busy = replace(ADA, running=4), replace(ADA, running=4, replicas_at_work=2)
    before = {"ada": Wish(4)}
    for now_s, pool in ((0.0, idle), (100.0, busy), (149.0, idle)):
        before = pool_wishes(before, [pool], 0.0, PACE, now_s)
        assert before["ada"].replicas == 4
    assert pool_wishes(before, [busy], 0.0, PACE, 150.0)["ada"].replicas == 4
    assert pool_wishes(before, [idle], 0.0, PACE, 151.0)["ada"].replicas == 2


def test_a_new_ingress_begins_with_what_is_there():
    there = replace(ADA, running=3, starting=1)
    assert pool_wishes({}, [there], 0.0, PACE, 0.0)["ada"].replicas == 4


class Simulated:
    """One pool whose replicas load and draw, second by second."""

    def __init__(self, pool: PoolLoad) -> None:
        self.pool, self.frames, self.now_s = pool, 0.0, 0.0
        self.wish: dict[str, Wish] = {}
        self.ready_at: list[float] = []  # of each replica that was wished for
        self.history: list[int] = []

    def run(self, seconds: int, arriving: Callable[[float], float]) -> None:
        for _ in range(seconds):
            self.frames += arriving(self.now_s)
            running = sum(at <= self.now_s for at in self.ready_at)
            speed = self.pool.frames_per_s
            at_work = min(running, math.ceil(self.frames / speed))
            now = replace(
                self.pool,
                running=running,
                starting=len(self.ready_at) - running,
                replicas_at_work=at_work,
            )
            self.wish = pool_wishes(self.wish, [now], self.frames, PACE, self.now_s)
            wanted = self.wish[self.pool.name].replicas
            self.ready_at = sorted(self.ready_at)[:wanted]
            self.ready_at += [self.now_s + self.pool.load_s] * (wanted - len(self.ready_at))
            self.frames -= min(self.frames, running * speed)
            self.history.append(wanted)
            self.now_s += 1.0


@settings(max_examples=25)
@given(load=st.floats(0.05, 0.95), every=st.integers(1, 40), load_s=st.floats(0, 120))
def test_a_constant_load_never_shrinks_its_pool(load: float, every: int, load_s: float):
    """Jobs arrive in equal intervals; a replica that was started for them is never given up."""
    pool = replace(ADA, load_s=load_s)
    frames = load * pool.bounds.at_most * pool.frames_per_s * every
    simulated = Simulated(pool)
    simulated.run(1200, lambda now_s: frames if now_s % every == 0 else 0.0)
    assert simulated.history == sorted(simulated.history)
    drawn_in_time = pool.bounds.at_most * pool.frames_per_s * (PACE.drain_s + load_s)
    assert simulated.frames <= frames + drawn_in_time


def test_a_burst_goes_from_zero_to_the_maximum_and_back_to_zero_without_a_step_between():
    simulated = Simulated(ADA)
    simulated.run(2000, lambda now_s: 20_000.0 if now_s == 0.0 else 0.0)
    assert [wanted for wanted, _ in groupby(simulated.history)] == [8, 0]
