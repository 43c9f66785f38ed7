"""The wishes of an ingress: what it reports, when it hands a report over, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serve_app.config.live_settings import LivePool, LiveSettings
from serve_app.config.settings import AppArgs, PoolSettings, ScalingSettings, StageSettings
from serve_app.graph.placement_watch import EAGER_S, PlacementWatch
from serve_app.graph.places import places_of
from serve_app.graph.replicas import ReplicaCounts
from serve_app.graph.scaler import PoolWork, Scaler, StageWork, Work
from serve_app.scaling.placement import Node

ARGS = AppArgs(
    pools=[
        PoolSettings(
            name="ada", arch="ada", num_gpus=1.0, replicas=0, max_replicas=8, usd_per_hour=0.4
        ),
        PoolSettings(
            name="hopper", arch="hopper", num_gpus=1.0, replicas=0, max_replicas=4, usd_per_hour=3.0
        ),
    ],
    finisher=StageSettings(threads=8, max_replicas=4),
    scaling=ScalingSettings(drain_s=60.0, load_s=30.0, job_frames=250),
)
IDLE = PoolWork(25.0, is_measured=True)
NOTHING = Work(
    0.0, {"ada": IDLE, "hopper": IDLE}, {"Preprocessor": StageWork(), "Finisher": StageWork()}, 0
)
BOTH = {"CPU": 64.0, "GPU": 8.0}
ADA, HOPPER = (
    Node({"musetalk/arch": "ada"}, BOTH, BOTH),
    Node({"musetalk/arch": "hopper"}, BOTH, BOTH),
)


def counts(**running: int) -> ReplicaCounts:
    """Return counts of running replicas; the stages run, and a policy is there."""
    pools = {f"Generator-{name}": number for name, number in running.items()}
    return ReplicaCounts({"Preprocessor": 1, "Finisher": 1} | pools, {}, pools, {}, True)


@dataclass
class Rig:
    """A scaler, its surroundings, and what it handed over."""

    args: AppArgs = ARGS
    work: Work = NOTHING
    nodes: list[Node] = field(default_factory=lambda: [ADA, HOPPER])
    now_s: float = 0.0
    pushed: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock = lambda: self.now_s  # noqa: E731
        self.placement = PlacementWatch(
            places_of(self.args),
            awaits_nodes=self.args.scaling.awaits_nodes,
            read_nodes=lambda: self.nodes,
            clock=clock,
        )
        self.scaler = Scaler(self.args, lambda: self.work, self.placement, self.push, clock=clock)
        self.scaler.set_counts(counts())

    async def push(self, report: Mapping[str, float]) -> None:
        self.pushed.append(dict(report))

    async def wanted(self) -> dict[str, float]:
        await self.scaler.follow_work()
        found = self.scaler.record()
        return {name.removeprefix("wanted:Generator-"): found[name] for name in found}

    async def look_at_nodes(self) -> None:
        for _ in range(2):
            await self.placement.look({"Generator-ada": 1})
            self.now_s += EAGER_S


async def test_nothing_is_reported_until_the_registry_has_been_read():
    """A wish of 0 would end the replicas that the jobs in it need."""
    rig = Rig(work=replace(NOTHING, jobs_unopened=None))
    rig.scaler.set_counts(counts(ada=3))
    assert await rig.wanted() == {}
    rig.work = NOTHING
    assert (await rig.wanted())["ada"] == 3


async def test_a_job_starts_the_cheapest_pool_before_its_frames_are_known():
    rig = Rig(work=replace(NOTHING, jobs_unopened=1))
    wanted = await rig.wanted()
    assert (wanted["ada"], wanted["hopper"]) == (1, 0)
    rig.work = replace(NOTHING, jobs_unopened=100)  # 25,000 frames, and 1500 for each replica
    assert (await rig.wanted())["ada"] == 8


async def test_a_higher_wish_is_handed_over_at_once_and_a_lower_one_is_not():
    rig = Rig()
    await rig.wanted()
    rig.pushed.clear()
    rig.work = replace(NOTHING, frames_waiting=4000.0)
    await rig.wanted()
    assert [push["wanted:Generator-ada"] for push in rig.pushed] == [3.0]
    rig.work, rig.now_s = NOTHING, 1000.0
    await rig.wanted()
    rig.now_s = 2000.0
    assert (await rig.wanted())["ada"] == 0
    assert len(rig.pushed) == 1


async def test_a_report_that_cannot_be_handed_over_waits_for_serve():
    rig = Rig(work=replace(NOTHING, frames_waiting=1.0))

    async def away(report: Mapping[str, float]) -> None:
        raise RuntimeError("no controller")

    rig.scaler._push = away
    assert (await rig.wanted())["ada"] == 1


async def test_a_pool_without_a_node_is_skipped_and_explained():
    rig = Rig(nodes=[HOPPER], work=replace(NOTHING, frames_waiting=100.0))
    await rig.look_at_nodes()
    wanted = await rig.wanted()
    assert (wanted["ada"], wanted["hopper"]) == (0, 1)
    ada, hopper = rig.scaler.reports()
    assert ada.reason == "no live node has the label musetalk/arch=ada"
    assert hopper.reason == ""
    assert not rig.scaler.can_start("ada", counts())
    assert rig.scaler.can_start("hopper", counts())


async def test_where_nodes_are_awaited_a_pool_without_one_is_started_all_the_same():
    scaling = ARGS.scaling.model_copy(update={"awaits_nodes": True})
    rig = Rig(ARGS.model_copy(update={"scaling": scaling}), nodes=[])
    rig.work = replace(NOTHING, frames_waiting=100.0)
    await rig.look_at_nodes()
    assert (await rig.wanted())["ada"] == 1
    assert rig.scaler.can_start("ada", counts())


async def test_prices_and_switches_change_what_is_wished_without_a_restart():
    rig = Rig(work=replace(NOTHING, frames_waiting=100.0))
    rig.scaler.set_live(LiveSettings(pools={"hopper": LivePool(usd_per_hour=0.1)}))
    wanted = await rig.wanted()
    assert (wanted["ada"], wanted["hopper"]) == (0, 1)
    rig = Rig(work=replace(NOTHING, frames_waiting=100.0))
    rig.scaler.set_live(LiveSettings(pools={"ada": LivePool(is_on=False)}))
    wanted = await rig.wanted()
    assert (wanted["ada"], wanted["hopper"]) == (0, 1)
    assert rig.scaler.reports()[0].reason == "switched off by user_config"
    assert not rig.scaler.can_start("ada", counts())


async def test_without_the_policy_no_pool_can_be_started():
    rig = Rig()
    bare = replace(counts(), has_policy=False)
    rig.scaler.set_counts(bare)
    assert not rig.scaler.can_start("ada", bare)
    assert "autoscaling_policy" in rig.scaler.reports()[0].reason


async def test_calls_that_wait_for_a_stage_start_replicas_of_it():
    rig = Rig()
    busy = {"Preprocessor": StageWork(), "Finisher": StageWork(calls=20, calls_waiting=11)}
    rig.work = replace(NOTHING, stages=busy)
    await rig.wanted()
    rig.now_s = 60.0
    wanted = await rig.wanted()
    assert wanted["wanted:Finisher"] == 3
    assert wanted["wanted:Preprocessor"] == 1


async def test_workers_claim_for_the_replicas_that_could_run():
    rig = Rig()
    assert rig.scaler.drawers(counts()) == 12
    assert rig.scaler.drawers(replace(counts(ada=2), has_policy=False)) == 2
