"""`user_config` reaches the scheduler and the wishes, and a faulty one changes nothing."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

import pytest

from orchestrator.store.errors import StoreUnavailable
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.placement_watch import EAGER_S, PlacementWatch
from serve_app.graph.places import places_of
from serve_app.graph.replicas import ReplicaCounts, ReplicaWatch, WatchTimes
from serve_app.graph.scaling_loop import Scaling
from serve_app.scaling.placement import Node
from serve_app.scheduling.pool_state import Kind
from serve_app.scheduling.scheduler import NoReplicaRuns

ARGS = AppArgs(
    pools=[
        PoolSettings(name="ada", replicas=0, max_replicas=8, usd_per_hour=0.4, frames_per_s=25.0),
        PoolSettings(
            name="hopper", replicas=0, max_replicas=4, usd_per_hour=3.0, frames_per_s=25.0
        ),
    ]
)
BIG = Node({}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0})
RUNNING = {"Preprocessor": 1, "Finisher": 1, "Generator-ada": 1, "Generator-hopper": 1}


class Rig:
    """Scaling in front of a cluster in which a replica of each deployment runs."""

    def __init__(self, args: AppArgs = ARGS, nodes: Sequence[Node] = (BIG,)) -> None:
        clock = itertools.count(0.0, 2 * EAGER_S)  # every look reads the nodes
        placement = PlacementWatch(
            places_of(args), read_nodes=lambda: nodes, clock=lambda: next(clock)
        )
        self.capacity = SharedCapacity(args, why=placement.reason)
        watch = ReplicaWatch(self.counts, times=WatchTimes(period_s=0.01))
        watch.subscribe(self.capacity.follow)
        self.running = dict(RUNNING)
        self.pushed: asyncio.Queue[dict[str, float]] = asyncio.Queue()
        self.scaling = Scaling(args, self.capacity, watch, placement, self.push)

    async def counts(self) -> ReplicaCounts:
        return ReplicaCounts(self.running, {}, self.running, {}, has_policy=True)

    async def push(self, report: Mapping[str, float]) -> None:
        self.pushed.put_nowait(dict(report))

    async def pool_of_a_call(self) -> str:
        self.capacity.follow(await self.counts())
        async with self.capacity.scheduler.turn("job", 25, Kind.GENERATE) as grant:
            return grant.pool


async def test_a_pool_that_is_switched_off_is_handed_nothing_until_it_is_on_again():
    rig = Rig()
    assert await rig.pool_of_a_call() == "ada"
    rig.scaling.set_live({"pools": {"ada": {"is_on": False}}})
    assert await rig.pool_of_a_call() == "hopper"
    rig.scaling.set_live({})
    assert await rig.pool_of_a_call() == "ada"


async def test_a_new_price_and_policy_decide_where_the_next_call_goes():
    rig = Rig()
    rig.scaling.set_live({"policy": "cheapest", "pools": {"hopper": {"usd_per_hour": 0.1}}})
    assert await rig.pool_of_a_call() == "hopper"


async def test_weights_are_those_of_the_origin():
    rig = Rig()
    rig.scaling.set_live({"weights": {"claimed": 3}})
    assert rig.capacity.weight_of("claimed") == 3.0
    assert rig.capacity.weight_of("sync") == 1.0


async def test_a_faulty_user_config_is_shown_and_what_was_set_stays(
    caplog: pytest.LogCaptureFixture,
):
    rig = Rig()
    rig.scaling.set_live({"pools": {"ada": {"is_on": False}}})
    rig.scaling.set_live({"pools": {"adda": {}}})
    assert rig.scaling.live_fault.endswith("did you mean `ada`?")
    assert "user_config is refused" in caplog.text
    assert await rig.pool_of_a_call() == "hopper"
    rig.scaling.set_live({"pools": {"ada": {"is_on": False}}})
    assert rig.scaling.live_fault == ""


async def test_a_job_in_the_registry_starts_a_pool_once_the_registry_can_be_read():
    """Until then nothing is reported, because nothing is known about the work."""
    rig = Rig()
    rig.running = {"Preprocessor": 1, "Finisher": 1}
    failed, is_readable = asyncio.Event(), asyncio.Event()

    async def unfinished() -> int:
        if not is_readable.is_set():
            failed.set()
            raise StoreUnavailable("the disk is full")
        return 1

    following = asyncio.create_task(rig.scaling.follow_forever(unfinished))
    await asyncio.wait_for(failed.wait(), 10)
    assert rig.scaling.record() == {}
    is_readable.set()
    first = await asyncio.wait_for(rig.pushed.get(), 10)
    assert (first["wanted:Generator-ada"], first["wanted:Generator-hopper"]) == (1.0, 0.0)
    with rig.capacity.scheduler.working_on("job", 0, 50_000):
        more = await asyncio.wait_for(rig.pushed.get(), 10)
    assert more["wanted:Generator-ada"] > 1.0
    following.cancel()


async def test_calls_that_are_given_up_name_what_stands_in_the_way_of_each_pool():
    driver = ARGS.driver.model_copy(update={"no_replica_timeout_s": 2.0})
    rig = Rig(ARGS.model_copy(update={"driver": driver}), nodes=())
    rig.running = {"Preprocessor": 1, "Finisher": 1}

    async def unfinished() -> int:
        return 1

    following = asyncio.create_task(rig.scaling.follow_forever(unfinished))
    with pytest.raises(NoReplicaRuns, match="pool ada: Ray lists no live node; pool hopper: Ray"):
        async with rig.capacity.scheduler.turn("job", 25, Kind.GENERATE):
            raise AssertionError("no replica runs")
    following.cancel()
