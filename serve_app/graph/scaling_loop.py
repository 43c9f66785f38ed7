"""Scaling as the ingress runs it: looks at work and cluster once a second, and when work arrives.

Everything that is decided is in scaler.py and serve_app/scaling; this is the loop around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serve_app.config.live_settings import LiveSettings, changed, read_live_settings
from serve_app.config.settings import AppArgs
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.placement_watch import PlacementWatch
from serve_app.graph.replicas import ReplicaCounts, ReplicaWatch, pool_deployment
from serve_app.graph.scaler import PoolReport, PoolWork, Scaler, StageWork, Work
from serve_app.scheduling.fair_gate import FairGate
from serve_app.scheduling.pool_state import Kind, PoolRates

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
PAUSE_S = 0.2  # after each look, however often the work changes


class Scaling:
    """The replicas that follow the work of one ingress.

    Args:
        push: hands a report to Serve's controller ahead of its time.
    """

    def __init__(
        self,
        args: AppArgs,
        capacity: SharedCapacity,
        watch: ReplicaWatch,
        placement: PlacementWatch,
        push: Callable[[Mapping[str, float]], Awaitable[None]],
    ) -> None:
        self._args = args
        self._capacity = capacity
        self._watch = watch
        self._placement = placement
        self._scaler = Scaler(args, self._work, placement, push)
        self._unfinished: int | None = None
        self._changed = asyncio.Event()
        self._lacks_policy = False
        self._reasons: list[str] = []  # why each pool cannot run
        self.live_fault = ""  # why `user_config` was refused
        self.record = self._scaler.record
        self.can_start = self._scaler.can_start

    async def follow_forever(self, unfinished: Callable[[], Awaitable[int]]) -> None:
        """Keep the wishes up to date; `unfinished` counts the jobs in the registry."""
        self._capacity.scheduler.subscribe(self._changed.set)
        end = self._watch.subscribe(self._follow)
        try:
            while True:
                self._changed.clear()
                await self._look(unfinished)
                await asyncio.sleep(PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S - PAUSE_S):
                        await self._changed.wait()
        finally:
            end()

    def set_live(self, values: Any) -> None:
        """Apply a `user_config`. A faulty one changes nothing, because it would end this ingress.

        It is logged, and `/health` shows the fault until a correct one comes.
        """
        try:
            live = read_live_settings(values, self._args)
        except ValueError as exc:
            self.live_fault = str(exc)
            logger.error("user_config is refused, and what was set before stays: %s", exc)
            return
        self.live_fault = ""
        self._scaler.set_live(live)
        self._change_scheduler(live)
        self._changed.set()

    def reports(self) -> list[PoolReport]:
        """Return each pool's state."""
        return self._scaler.reports()

    @property
    def drawers(self) -> int:
        """How many Generator replicas run, or may be started when work waits."""
        return self._scaler.drawers(self._watch.latest())

    @property
    def frames_waiting(self) -> float:
        """The frames of opened jobs that no replica has begun to draw."""
        return self._capacity.scheduler.frames_waiting()

    def _follow(self, counts: ReplicaCounts) -> None:
        lacks_policy = self._args.is_scaled and bool(counts.running) and not counts.has_policy
        if lacks_policy and not self._lacks_policy:
            logger.error("max_replicas has no effect: autoscaling_policy is missing beside args")
        self._lacks_policy = lacks_policy
        self._scaler.set_counts(counts)
        self._changed.set()

    async def _look(self, unfinished: Callable[[], Awaitable[int]]) -> None:
        counts = self._watch.latest()
        if self._args.is_scaled:
            try:
                self._unfinished = await unfinished()
            except Exception as exc:  # the last number stands in; the registry's owner logs more
                logger.debug("jobs cannot be counted", extra={"error": type(exc).__name__})
        await self._placement.look(counts.starting)
        reasons = [self._placement.reason(pool_deployment(pool.name)) for pool in self._args.pools]
        if reasons != self._reasons:
            self._reasons = reasons
            self._capacity.follow(counts)  # the scheduler names them when calls are given up
        await self._scaler.follow_work()

    def _work(self) -> Work:
        scheduler = self._capacity.scheduler
        facts = scheduler.facts()
        unopened = None
        if self._unfinished is not None:
            unopened = max(0, self._unfinished - scheduler.jobs_opened)
        pools = {
            name: PoolWork(
                pool.frames_per_s,
                pool.frames_in_flight,
                pool.calls_in_flight,
                scheduler.expected_s(name, Kind.GENERATE, 1) is not None,
            )
            for name, pool in facts.pools.items()
        }
        stages = {
            "Preprocessor": _stage_work(self._capacity.prepare),
            "Finisher": _stage_work(self._capacity.compose),
        }
        return Work(facts.waiting_frames, pools, stages, unopened)

    def _change_scheduler(self, live: LiveSettings) -> None:
        self._capacity.weights = {str(origin): share for origin, share in live.weights.items()}
        scheduler = self._capacity.scheduler
        scheduler.set_policy(live.policy or self._args.driver.policy)
        for pool in self._args.pools:
            now = changed(pool, live)
            scheduler.set_rates(PoolRates(now.name, now.frames_per_s, now.usd_per_hour))
            scheduler.switch(now.name, is_on=live.is_on(now.name))


def _stage_work(gate: FairGate) -> StageWork:
    return StageWork(gate.inside + len(gate), len(gate))
