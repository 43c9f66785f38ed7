"""Keeps the number of replicas in step with the work, and reports it to Serve.

    work, counts of replicas, obstacles ─► wishes (serve_app/scaling) ─► report ─► policy.py

Serve asks for the report once a second. A higher wish is handed over at once. Until this ingress
has read its registry it reports nothing, because a wish of 0 would end the replicas that the jobs
in it need.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from serve_app.config.live_settings import LiveSettings, changed
from serve_app.config.sections import PoolSettings, StageSettings
from serve_app.config.settings import AppArgs
from serve_app.graph.placement_watch import PlacementWatch
from serve_app.graph.replicas import NO_REPLICAS, ReplicaCounts, pool_deployment
from serve_app.scaling.demand import PoolLoad, pool_wishes
from serve_app.scaling.load_times import LoadTime
from serve_app.scaling.policy import WANTED
from serve_app.scaling.stage_demand import StageLoad, StageWish, stage_wish
from serve_app.scaling.wishes import Bounds, Pace, Wish

logger = logging.getLogger(__name__)

STAGE_LOAD_S = 10.0  # of a CPU stage, until it is measured: landmark models on a small machine
AWAITED_S = 600.0  # a node that has not come after this is not waited for any more


@dataclass(frozen=True, slots=True)
class PoolWork:
    """What a pool does now. `frames_per_s`: of one replica, measured if `is_measured`."""

    frames_per_s: float
    frames_in_flight: int = 0
    replicas_at_work: int = 0
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class StageWork:
    """The calls for a CPU stage, and how many of them wait because its threads are taken."""

    calls: int = 0
    calls_waiting: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """All work of this ingress.

    `frames_waiting`: of jobs whose files were examined, those that are not being drawn.
    `jobs_unopened`: jobs whose frames are not known yet. None: the registry has not been read.
    """

    frames_waiting: float
    pools: Mapping[str, PoolWork]
    stages: Mapping[str, StageWork]
    jobs_unopened: int | None = None


@dataclass(frozen=True, slots=True)
class PoolReport:
    """One pool, for `/health` and metrics. `reason`: why it cannot run."""

    name: str
    wanted: int
    running: int
    starting: int
    frames_per_s: float
    frames_in_flight: int
    load_s: float
    reason: str


@dataclass(slots=True)
class _Pool:
    settings: PoolSettings
    load: LoadTime
    live: LiveSettings = field(default_factory=LiveSettings)

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.settings.replicas, _most(self.settings) if self.is_on else 0)

    @property
    def is_on(self) -> bool:
        return self.live.is_on(self.settings.name)


@dataclass(slots=True)
class _Stage:
    settings: StageSettings
    load: LoadTime
    wish: StageWish | None = None


class Scaler:
    """The wishes of one ingress for the deployments behind it.

    Args:
        work: returns the present work.
        push: hands a report to Serve's controller ahead of its time.
    """

    def __init__(
        self,
        args: AppArgs,
        work: Callable[[], Work],
        placement: PlacementWatch,
        push: Callable[[Mapping[str, float]], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = self._settings = args.scaling
        self._pools = {pool.name: _Pool(pool, LoadTime(settings.load_s)) for pool in args.pools}
        self._stages = {
            "Preprocessor": _Stage(args.preprocessor, LoadTime(STAGE_LOAD_S)),
            "Finisher": _Stage(args.finisher, LoadTime(STAGE_LOAD_S)),
        }
        self._pace = Pace(settings.drain_s, settings.idle_loads, settings.idle_s)
        self._work = work
        self._placement = placement
        self._push = push
        self._clock = clock
        self._counts = NO_REPLICAS
        self._wishes: dict[str, Wish] = {}

    def set_counts(self, counts: ReplicaCounts) -> None:
        """Take in which replicas run and start."""
        self._counts, now_s = counts, self._clock()
        for name, pool in self._pools.items():
            pool.load.count(counts.in_pool(name), counts.starting_in_pool(name), now_s)
        for name, stage in self._stages.items():
            stage.load.count(counts.running.get(name, 0), counts.starting.get(name, 0), now_s)

    def set_live(self, live: LiveSettings) -> None:
        """Take in what `user_config` changes."""
        for pool in self._pools.values():
            pool.live = live

    def can_start(self, name: str, counts: ReplicaCounts) -> bool:
        """Return whether a pool that has no replicas gets some when work waits."""
        pool = self._pools[name]
        return pool.settings.replicas == 0 and self._may_grow(pool, counts)

    def drawers(self, counts: ReplicaCounts) -> int:
        """Return how many Generator replicas run, or may be started when work waits."""
        scaled = [pool for pool in self._pools.values() if self._may_grow(pool, counts)]
        rest = [pool for pool in self._pools.values() if not self._may_grow(pool, counts)]
        return sum(pool.bounds.at_most for pool in scaled) + sum(
            counts.in_pool(pool.settings.name) for pool in rest
        )

    def record(self) -> dict[str, float]:
        """Return the metrics that the autoscaling policy reads; none while they are not known."""
        wanted = {pool_deployment(name): wish.replicas for name, wish in self._wishes.items()}
        wanted |= {n: stage.wish.wish.replicas for n, stage in self._stages.items() if stage.wish}
        return {f"{WANTED}{name}": float(number) for name, number in wanted.items()}

    async def follow_work(self) -> None:
        """Renew the wishes. If one is higher than before, hand over the report at once."""
        work, now_s = self._work(), self._clock()
        if work.jobs_unopened is None or self._counts == NO_REPLICAS:
            return
        before = self.record()
        frames = work.frames_waiting + work.jobs_unopened * self._settings.job_frames
        frames += sum(pool.frames_in_flight for pool in work.pools.values())
        loads = [self._pool_load(pool, work.pools[name]) for name, pool in self._pools.items()]
        self._wishes = pool_wishes(self._wishes, loads, frames, self._pace, now_s)
        for name, stage in self._stages.items():
            load = self._stage_load(name, stage, work.stages[name])
            stage.wish = stage_wish(stage.wish, load, self._pace, now_s)
        after = self.record()
        if any(number > before.get(name, 0.0) for name, number in after.items()):
            await self._push_safely(after)

    def reports(self) -> list[PoolReport]:
        """Return each pool's state."""
        work = self._work()
        return [self._report_of(pool, work.pools[name]) for name, pool in self._pools.items()]

    def _pool_load(self, pool: _Pool, work: PoolWork) -> PoolLoad:
        name = pool.settings.name
        settings = changed(pool.settings, pool.live)
        return PoolLoad(
            name,
            work.frames_per_s,
            pool.load.seconds,
            settings.usd_per_hour / 3600 / work.frames_per_s,
            pool.bounds,
            running=self._counts.in_pool(name),
            starting=self._counts.starting_in_pool(name),
            replicas_at_work=work.replicas_at_work,
            is_stuck=self._is_stuck(pool),
            is_speed_known=work.is_measured or "frames_per_s" in settings.model_fields_set,
        )

    def _stage_load(self, name: str, stage: _Stage, work: StageWork) -> StageLoad:
        return StageLoad(
            stage.settings.threads,
            stage.load.seconds,
            Bounds(stage.settings.replicas, _most(stage.settings)),
            running=self._counts.running.get(name, 0),
            starting=self._counts.starting.get(name, 0),
            calls=work.calls,
            calls_waiting=work.calls_waiting,
        )

    def _may_grow(self, pool: _Pool, counts: ReplicaCounts) -> bool:
        is_scaled = pool.settings.max_replicas is not None and counts.has_policy
        return is_scaled and pool.is_on and not self._is_stuck(pool)

    def _is_stuck(self, pool: _Pool) -> bool:
        if self._placement.obstacle(pool_deployment(pool.settings.name)) is None:
            return False
        if not self._settings.awaits_nodes:
            return True
        return pool.load.waiting_s(self._clock()) > AWAITED_S

    def _report_of(self, pool: _Pool, work: PoolWork) -> PoolReport:
        name = pool.settings.name
        return PoolReport(
            name,
            wanted=self._counts.wanted.get(pool_deployment(name), 0),
            running=self._counts.in_pool(name),
            starting=self._counts.starting_in_pool(name),
            frames_per_s=work.frames_per_s,
            frames_in_flight=work.frames_in_flight,
            load_s=pool.load.seconds,
            reason=self._reason_of(pool),
        )

    def _reason_of(self, pool: _Pool) -> str:
        if not pool.is_on:
            return "switched off by user_config"
        if reason := self._placement.reason(pool_deployment(pool.settings.name)):
            return reason
        if pool.settings.max_replicas is not None and not self._counts.has_policy:
            return "max_replicas has no effect without autoscaling_policy"
        return ""

    async def _push_safely(self, report: Mapping[str, float]) -> None:
        try:
            await self._push(report)
        except Exception as exc:  # Serve asks for the report soon in any case
            logger.warning("the report was not handed over", extra={"error": type(exc).__name__})


def _most(settings: PoolSettings | StageSettings) -> int:
    most = settings.max_replicas
    return settings.replicas if most is None else most
