"""Which call is sent next, and to which pool: fair, bounded, and nobody waits for ever."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduling.fair_gate import FairGate
from serve_app.scheduling.fair_queue import FairQueue, Item
from serve_app.scheduling.pool_state import Kind, Pace, PoolRates
from serve_app.scheduling.scheduler import KEEP_S, Grant, NoReplicaRuns, SegmentScheduler
from serve_app.scheduling.tail import SHORTEST_FRAMES, part_frames
from tests.unit.stage_rig import settle

LONGEST = 60
LENGTHS = st.integers(1, LONGEST)


# --- the queue -------------------------------------------------------------------------------


def taken_in_order(queue: FairQueue[Item], count: int) -> list[Item]:
    taken = []
    for _ in range(count):
        item = next(queue.in_order())
        queue.take(item)
        taken.append(item)
    return taken


@given(
    jobs=st.lists(st.lists(LENGTHS, min_size=1, max_size=30), min_size=1, max_size=6),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=6, max_size=6),
)
def test_jobs_that_wait_get_frames_in_proportion_to_their_weights(jobs, weights):
    """As long as two jobs both have items, their shares differ by at most one item each."""
    queue: FairQueue[Item] = FairQueue()
    left = {}
    for number, lengths in enumerate(jobs):
        queue.set_weight(str(number), weights[number])
        left[str(number)] = len(lengths)
        for frames in lengths:
            queue.push(Item(job_id=str(number), frames=frames))
    served: Counter[str] = Counter()
    for _ in range(sum(left.values())):
        [item] = taken_in_order(queue, 1)
        served[item.job_id] += item.frames
        left[item.job_id] -= 1
        busy = [job for job, items in left.items() if items]
        shares = {job: served[job] / weights[int(job)] for job in busy}
        for first in busy:
            for second in busy:
                bound = LONGEST / weights[int(first)] + LONGEST / weights[int(second)]
                assert shares[first] - shares[second] <= bound + 1e-6


@given(before=st.integers(0, 40), others=st.integers(1, 8))
def test_a_new_job_waits_for_one_item_of_each_other_at_most(before, others):
    queue: FairQueue[Item] = FairQueue()
    for number in range(others):
        for _ in range(50):
            queue.push(Item(job_id=f"old-{number}", frames=50))
    taken_in_order(queue, before)
    new = Item(job_id="new", frames=50)
    queue.push(new)
    assert new in taken_in_order(queue, others + 1)


def test_a_job_that_was_idle_does_not_catch_up():
    queue: FairQueue[Item] = FairQueue()
    for job in ("a", "b"):
        queue.push(Item(job_id=job, frames=10))
    taken_in_order(queue, 2)
    for _ in range(10):
        queue.push(Item(job_id="a", frames=10))
    taken_in_order(queue, 8)
    for _ in range(4):
        queue.push(Item(job_id="b", frames=10))
    jobs = [item.job_id for item in taken_in_order(queue, 4)]
    assert Counter(jobs) == {"a": 2, "b": 2}


@given(st.lists(st.tuples(st.integers(0, 2), LENGTHS), max_size=20))
def test_within_a_job_ranks_come_first_and_then_the_order_of_arrival(items):
    queue: FairQueue[Item] = FairQueue()
    pushed = [Item(job_id="a", frames=frames, rank=rank) for rank, frames in items]
    for item in pushed:
        queue.push(item)
    assert list(queue.in_order()) == sorted(pushed, key=lambda item: (item.rank, item.number))


def test_nothing_is_kept_about_jobs_that_have_ended():
    queue: FairQueue[Item] = FairQueue()
    for number in range(1000):
        queue.set_weight(str(number), 2.0)
        item = Item(job_id=str(number), frames=50)
        queue.push(item)
        queue.take(item)
        queue.forget(str(number))
    assert not queue._lines and not queue._weights


# --- gates -----------------------------------------------------------------------------------


class Visitors:
    """Items that enter a gate and leave when they are told to."""

    def __init__(self, gate: FairGate) -> None:
        self.gate = gate
        self.inside: list[tuple[str, int, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.most_at_once = self.most_frames = 0

    def come(self, job_id: str, frames: int) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._visit(job_id, frames))
        self.tasks.append(task)
        return task

    async def _visit(self, job_id: str, frames: int) -> None:
        async with self.gate.turn(job_id, frames):
            me = (job_id, frames, asyncio.Event())
            self.inside.append(me)
            self.most_at_once = max(self.most_at_once, len(self.inside))
            self.most_frames = max(self.most_frames, sum(one[1] for one in self.inside))
            try:
                await me[2].wait()
            finally:
                self.inside.remove(me)


@given(
    visits=st.lists(st.tuples(st.sampled_from("abcd"), LENGTHS), min_size=1, max_size=30),
    places=st.integers(1, 4),
    room=st.integers(LONGEST, 3 * LONGEST),
    cancelled=st.sets(st.integers(0, 29), max_size=10),
)
def test_a_gate_keeps_its_bounds_and_lets_everybody_in(visits, places, room, cancelled):
    async def go() -> None:
        gate = FairGate(places, size=room)
        visitors = Visitors(gate)
        tasks = [visitors.come(job_id, frames) for job_id, frames in visits]
        await settle()
        for number in cancelled & set(range(len(tasks))):
            tasks[number].cancel()
        while not all(task.done() for task in tasks):
            await settle()
            if visitors.inside:
                visitors.inside[0][2].set()
        assert visitors.most_at_once <= places
        assert visitors.most_frames <= room
        assert (gate.inside, len(gate)) == (0, 0)
        assert gate._size_inside == 0

    asyncio.run(asyncio.wait_for(go(), 30))


async def test_one_item_of_each_job_passes_a_gate_that_is_full():
    gate = FairGate(2, always_one=True)
    visitors = Visitors(gate)
    for _ in range(3):
        visitors.come("a", 10)
    await settle()
    assert [job for job, _, _ in visitors.inside] == ["a", "a"]
    for _ in range(2):
        visitors.come("b", 10)
    await settle()
    assert [job for job, _, _ in visitors.inside] == ["a", "a", "b"]
    assert gate.others_wait("a") and gate.others_wait("b")
    for task in visitors.tasks:
        task.cancel()
    await asyncio.wait(visitors.tasks)


# --- the scheduler ---------------------------------------------------------------------------


@dataclass
class Bench:
    """A scheduler with replicas of known speed, on a clock of its own.

    `frames`: by pool. `order`: the jobs in the order in which their calls began.
    """

    speeds: dict[str, float]
    policy: Any = "soonest"
    usd_per_hour: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    frames: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    ends: dict[asyncio.Event, tuple[float, str]] = field(default_factory=dict)
    most_in_flight: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.scheduler = SegmentScheduler(
            [PoolRates(name, 1.0, self.usd_per_hour.get(name, 0.0)) for name in self.speeds],
            policy=self.policy,
            clock=lambda: self.now,
        )

    def call(self, job_id: str, frames: int, **how: Any) -> "asyncio.Task[str]":
        """Begin to make a call; its pool."""
        return asyncio.create_task(self._call(job_id, frames, how))

    async def _call(self, job_id: str, frames: int, how: dict[str, Any]) -> str:
        kind = how.pop("kind", Kind.GENERATE)
        async with self.scheduler.turn(job_id, frames, kind, **how) as grant:
            self.order.append(job_id)
            seconds = frames / self.speeds[grant.pool]
            ended = asyncio.Event()
            self.ends[ended] = (self.now + seconds, grant.pool)
            in_flight = sum(pool == grant.pool for _, pool in self.ends.values())
            self.most_in_flight[grant.pool] = max(self.most_in_flight[grant.pool], in_flight)
            try:
                await ended.wait()
            finally:
                self.ends.pop(ended, None)
            self.frames[grant.pool] += frames
            self.scheduler.measured(grant.pool, kind, frames, seconds)
            return grant.pool

    async def run(self, tasks: "list[asyncio.Task[str]]") -> list[str]:
        """Let time pass until all calls have ended; their pools."""
        await settle()
        while not all(task.done() for task in tasks):
            assert self.ends, "calls wait although nothing is in flight"
            ended = min(self.ends, key=lambda one: self.ends[one][0])
            self.now = self.ends.pop(ended)[0]
            ended.set()
            await settle()
        return [task.result() for task in tasks]


async def test_pools_share_frames_by_their_speed():
    """Finding 7: without prices everything went to the first pool, the slowest."""
    bench = Bench({"slow": 1.0, "middle": 2.0, "fast": 4.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
    await bench.run([bench.call("a", 50) for _ in range(70)])
    total = sum(bench.frames.values())
    for pool, share in (("slow", 1 / 7), ("middle", 2 / 7), ("fast", 4 / 7)):
        assert bench.frames[pool] / total == pytest.approx(share, abs=0.03)
    assert bench.now <= total / 7.0 * 1.05  # and they end together


async def test_a_slow_pool_is_not_given_what_a_fast_one_ends_sooner():
    bench = Bench({"slow": 1.0, "fast": 20.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
    await bench.run([bench.call("a", 50) for _ in range(4)])  # both are measured now
    bench.frames.clear()
    await bench.run([bench.call("a", 50) for _ in range(5)])
    assert bench.frames == {"fast": 250}


@given(
    replicas=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    calls=st.lists(st.tuples(st.sampled_from("abc"), LENGTHS), min_size=1, max_size=40),
    policy=st.sampled_from(["soonest", "cheapest"]),
)
def test_replicas_are_never_given_more_calls_than_they_are(replicas, calls, policy):
    async def go() -> None:
        if not any(replicas):
            return
        speeds = {f"pool-{number}": 2.0**number for number in range(len(replicas))}
        bench = Bench(speeds, policy)
        for pool, running in zip(speeds, replicas, strict=True):
            bench.scheduler.set_running(pool, running)
        await bench.run([bench.call(job_id, frames) for job_id, frames in calls])
        for pool, running in zip(speeds, replicas, strict=True):
            assert bench.most_in_flight[pool] <= running
        assert not any(bench.scheduler.calls_in_flight().values())
        assert bench.scheduler.frames_waiting() == 0

    asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize(
    ("policy", "expected"), [("soonest", {"fast": 1}), ("cheapest", {"cheap": 1})]
)
async def test_the_policy_says_whether_time_or_price_comes_first(policy, expected):
    bench = Bench({"fast": 4.0, "cheap": 1.0}, policy, {"fast": 400.0, "cheap": 1.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
        bench.scheduler.measured(pool, Kind.GENERATE, 100, 100 / bench.speeds[pool])
    assert Counter(await bench.run([bench.call("a", 50)])) == expected


async def test_among_pools_that_are_about_as_soon_the_price_decides():
    bench = Bench({"dear": 4.1, "cheap": 4.0}, usd_per_hour={"dear": 3.0, "cheap": 1.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
        bench.scheduler.measured(pool, Kind.GENERATE, 100, 100 / bench.speeds[pool])
    assert await bench.run([bench.call("a", 50)]) == ["cheap"]


async def test_a_cheap_pool_without_replicas_gets_nothing():
    """Finding 2: it failed jobs while other pools idled."""
    bench = Bench({"gone": 9.0, "here": 1.0}, "cheapest", {"here": 9.0})
    bench.scheduler.set_running("here", 1)
    pools = await bench.run([bench.call("a", 50) for _ in range(5)])
    assert set(pools) == {"here"}


async def test_preferring_and_avoiding_a_pool():
    bench = Bench({"one": 1.0, "two": 1.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
    assert await bench.run([bench.call("a", 9, prefer="two")]) == ["two"]
    assert await bench.run([bench.call("a", 9, prefer="two", avoid={"two"})]) == ["one"]
    bench.scheduler.set_running("one", 0)
    assert await bench.run([bench.call("a", 9, avoid={"two"})]) == ["two"]  # no other runs


async def test_the_replica_that_encoded_a_jobs_first_block_draws_its_first_faces():
    """Otherwise another job's call, which waits, takes it, and the new job waits twice."""
    bench = Bench({"gpu": 1.0})
    bench.scheduler.set_running("gpu", 1)
    first = bench.call("new", 5, kind=Kind.ENCODE, is_first=True)
    await settle()
    other = bench.call("old", 50)
    await bench.run([first])
    assert bench.order == ["new"]  # the replica is kept
    faces = bench.call("new", 50, is_first=True)
    await bench.run([faces, other])
    assert bench.order == ["new", "new", "old"]
    assert bench.most_in_flight == {"gpu": 1}


async def test_a_replica_is_kept_for_a_moment_only_and_not_in_a_pool_that_is_lost():
    bench = Bench({"gpu": 1.0, "other": 1.0})
    bench.scheduler.set_running("gpu", 1)
    first = bench.call("new", 5, kind=Kind.ENCODE, is_first=True)
    await settle()
    other = bench.call("old", 50)
    await bench.run([first])
    await asyncio.sleep(2 * KEEP_S)
    await bench.run([other])  # the new job does not come
    await bench.run([bench.call("new", 5, kind=Kind.ENCODE, is_first=True)])
    bench.scheduler.set_running("gpu", 0)
    bench.scheduler.set_running("other", 1)
    assert await bench.run([bench.call("new", 50, is_first=True)]) == ["other"]
    assert bench.scheduler.calls_in_flight() == {"gpu": 0, "other": 0}


async def test_encoding_overtakes_drawing_but_not_the_first_segment():
    bench = Bench({"cpu": 1.0})
    bench.scheduler.set_running("cpu", 1)
    began = [bench.call("a", 50)]
    await settle()
    kinds = [("later", Kind.GENERATE, False), ("encode", Kind.ENCODE, False),
             ("first", Kind.GENERATE, True)]  # fmt: skip
    order: list[str] = []

    async def call(name: str, kind: Kind, is_first: bool) -> str:
        async with bench.scheduler.turn("a", 50, kind, is_first=is_first):
            order.append(name)
        return name

    began += [asyncio.create_task(call(*one)) for one in kinds]
    await bench.run(began)
    assert order == ["first", "encode", "later"]


async def test_a_pool_that_hangs_does_not_keep_calls_from_another():
    """What was to be free by now is looked at again, although nothing has ended."""
    bench = Bench({"slow": 1.0, "fast": 1000.0})
    for pool in bench.speeds:
        bench.scheduler.set_running(pool, 1)
        bench.scheduler.measured(pool, Kind.GENERATE, 100, 100 / bench.speeds[pool])
    hanging = bench.call("a", 50)
    await settle()
    assert bench.scheduler.facts().pools["fast"].frames_in_flight == 50
    waiting = bench.call("a", 50)
    await settle()
    assert not bench.scheduler.calls_in_flight()["slow"]  # the fast one should be free in 50 ms
    bench.now = 600.0
    async with asyncio.timeout(10):
        while not bench.scheduler.calls_in_flight()["slow"]:
            await asyncio.sleep(0.01)
    for task in (hanging, waiting):
        task.cancel()
    await asyncio.wait([hanging, waiting])


@given(
    calls=st.lists(st.sampled_from("abc"), min_size=1, max_size=25),
    steps=st.lists(st.tuples(st.integers(0, 24), st.booleans()), max_size=25),
)
def test_calls_that_are_cancelled_hold_nothing(calls, steps):
    """At any moment: while they wait, when they have just been granted, while they run."""

    async def go() -> None:
        bench = Bench({"cpu": 1.0})
        bench.scheduler.set_running("cpu", 2)
        tasks = [bench.call(job_id, 10) for job_id in calls]
        for number, has_settled in steps:
            if has_settled:
                await settle()
            if bench.ends and number % 2:
                next(iter(bench.ends)).set()  # grants another one before its task runs
            tasks[number % len(tasks)].cancel()
        await settle()
        left = [task for task in tasks if not task.done()]
        await bench.run(left)
        assert not bench.scheduler.calls_in_flight()["cpu"]
        assert bench.scheduler.facts().waiting_calls == 0

    asyncio.run(asyncio.wait_for(go(), 30))


async def test_a_grant_is_lost_when_the_pool_is_gone_and_another_runs():
    bench = Bench({"one": 1.0, "two": 1.0})
    bench.scheduler.set_running("one", 1)
    grants: list[Grant] = []

    async def hold() -> None:
        async with bench.scheduler.turn("a", 50, Kind.GENERATE) as grant:
            grants.append(grant)
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await settle()
    bench.scheduler.set_running("one", 0)
    assert not grants[0].lost.is_set()  # it may still end, and nobody else could draw it
    bench.scheduler.set_running("two", 1)
    bench.scheduler.set_running("one", 0)
    assert grants[0].lost.is_set()
    task.cancel()
    await asyncio.wait({task})


async def test_calls_wait_for_a_replica_only_so_long():
    scheduler = SegmentScheduler([PoolRates("ada")], no_replica_s=0.02)
    scheduler.set_running("ada", 0, "no node has the label musetalk/arch=ada")
    with pytest.raises(NoReplicaRuns, match="no node has the label musetalk/arch=ada"):
        async with scheduler.turn("a", 50, Kind.GENERATE):
            raise AssertionError
    assert scheduler.facts().waiting_calls == 0


async def test_frames_of_a_job_wait_until_they_are_handed_out():
    bench = Bench({"cpu": 1.0})
    changes = []
    bench.scheduler.subscribe(lambda: changes.append(bench.scheduler.frames_waiting()))
    with bench.scheduler.working_on("a", encode_frames=100, draw_frames=200):
        assert bench.scheduler.frames_waiting() == 250
        bench.scheduler.set_running("cpu", 1)
        await bench.run([bench.call("a", 50, kind=Kind.ENCODE)])
        assert bench.scheduler.frames_waiting() == 225
    assert bench.scheduler.frames_waiting() == 0
    assert changes[0] == 250 and changes[-1] == 0


def test_a_pace_follows_the_last_calls():
    pace = Pace()
    assert pace.expected_s(50) is None
    for _ in range(20):
        pace.measured(50, 5.0)
    for _ in range(20):
        pace.measured(50, 1.0)
    assert pace.expected_s(50) == pytest.approx(1.0, rel=0.1)


# --- the tail --------------------------------------------------------------------------------


@given(total=st.integers(1, 3000), replicas=st.integers(1, 64), length=st.integers(1, 120))
def test_parts_cover_a_job_and_are_never_shorter_than_it_pays(total, replicas, length):
    left, parts = total, []
    while left:
        segment = min(length, left)
        while segment:
            part = part_frames(segment, left, replicas)
            assert 0 < part <= segment
            assert part == segment or part >= SHORTEST_FRAMES
            parts.append(part)
            segment -= part
            left -= part
    assert sum(parts) == total


@pytest.mark.parametrize("replicas", [2, 4, 8, 16])
def test_replicas_end_together(replicas):
    """A minute in segments of 50 frames: within 5 % of an equal share and a shortest part."""
    left, free_at = 1500, [0.0] * replicas
    while left:
        segment = min(50, left)
        while segment:
            part = part_frames(segment, left, replicas)
            soonest = free_at.index(min(free_at))
            free_at[soonest] += part
            segment -= part
            left -= part
    assert max(free_at) <= 1500 / replicas * 1.05 + SHORTEST_FRAMES


def test_one_replica_leaves_little_to_encode_at_the_end():
    left, parts = 250, []
    while left:
        segment = min(50, left)
        while segment:
            parts.append(part_frames(segment, left, 1))
            segment -= parts[-1]
            left -= parts[-1]
    assert parts == [50, 50, 50, 50, 25, 13, 6, 6]
