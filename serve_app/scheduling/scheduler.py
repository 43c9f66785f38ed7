"""One scheduler for the Generator calls of all jobs, over every replica of every pool.

    turn ─► queue, fair by job ─► the pool that finishes first ─► Grant ─► the call ─► measured

A call waits here and not in a replica's queue, so the choice is made when a replica is free. Only
pools with running replicas count; `set_running` says how many there are. All methods belong to one
event loop, and nothing here polls.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from musetalk_pipeline.errors import Stage, StageFailed
from serve_app.scheduling.fair_queue import FairQueue, Item
from serve_app.scheduling.pool_state import (
    CALLS_PER_REPLICA,
    ENCODE_COST,
    Forecast,
    InFlight,
    Kind,
    Policy,
    PoolFacts,
    PoolRates,
    PoolState,
    QueueFacts,
    calibration_of,
    choose,
)

logger = logging.getLogger(__name__)

FIRST, ENCODE, GENERATE = range(3)  # ranks within a job: its first segment, then blocks, then faces
_RANKS = {Kind.ENCODE: ENCODE, Kind.GENERATE: GENERATE}
LOOK_AGAIN_S = 0.05  # beyond the time at which a busy pool was expected to be free
# How long a replica that has encoded the first block of a job is kept for the job's first faces.
# Their call comes some milliseconds later; another job's may take seconds.
KEEP_S = 0.1


class NoReplicaRuns(StageFailed):
    """No Generator replica of any pool has been running for too long. Another try waits as long."""

    default_stage = Stage.INFERENCE


@dataclass(slots=True, eq=False)
class Grant:
    """The right to make one call to a pool.

    `waited_s`: for it. `lost`: is set when the pool's last replica is gone while another pool runs;
    the call should then be made there.
    """

    pool: str
    waited_s: float
    call: InFlight
    job_id: str
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call(Item):
    kind: Kind
    avoid: frozenset[str]
    prefer: str | None
    arrived_at: float
    granted: "asyncio.Future[Grant]"


@dataclass(slots=True)
class _Work:
    """Frames of a job that have not been handed out, as drawn frames."""

    left: float


class SegmentScheduler:
    """Hands out Generator calls.

    Args:
        no_replica_s: how long calls wait while no pool has a running replica; then they fail.
    """

    def __init__(
        self,
        pools: Iterable[PoolRates],
        *,
        policy: Policy = "soonest",
        no_replica_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = {rates.name: PoolState(rates) for rates in pools}
        self._policy = policy
        self._no_replica_s = no_replica_s
        self._clock = clock
        self._queue: FairQueue[_Call] = FairQueue()
        self._grants: set[Grant] = set()
        self._kept: dict[str, tuple[Grant, asyncio.TimerHandle]] = {}  # by job; see KEEP_S
        self._work: dict[str, _Work] = {}
        self._listeners: list[Callable[[], None]] = []
        self._giving_up: asyncio.TimerHandle | None = None
        self._looking_again: asyncio.TimerHandle | None = None

    # What runs -------------------------------------------------------------------------------

    def set_running(self, pool: str, running: int, reason: str = "") -> None:
        """Say how many replicas of a pool run now, and if none does, why."""
        state = self._pools[pool]
        state.running, state.reason = running, reason
        if self.running:
            for grant in self._grants:
                if not self._pools[grant.pool].running:
                    grant.lost.set()
        self._dispatch()

    def set_rates(self, rates: PoolRates) -> None:
        """Change the price and the configured speed of a pool."""
        self._pools[rates.name].rates = rates
        self._dispatch()

    def set_policy(self, policy: Policy) -> None:
        """Change what decides between pools."""
        self._policy = policy
        self._dispatch()

    def switch(self, pool: str, *, is_on: bool) -> None:
        """Hand nothing more to a pool that is switched off. It ends what it works on."""
        self._pools[pool].is_on = is_on
        self._dispatch()

    def usd_per_hour(self) -> dict[str, float]:
        """Return the price of one replica of each pool."""
        return {name: pool.rates.usd_per_hour for name, pool in self._pools.items()}

    @property
    def running(self) -> int:
        """How many Generator replicas run, in all pools that are on."""
        return sum(pool.running for pool in self._pools.values() if pool.is_on)

    @property
    def jobs_opened(self) -> int:
        """The number of jobs whose frames `frames_waiting` counts."""
        return len(self._work)

    def runs_elsewhere(self, avoid: Collection[str]) -> bool:
        """Return whether a pool that is not in `avoid` has a running replica."""
        others = (pool for name, pool in self._pools.items() if name not in avoid)
        return any(pool.running and pool.is_on for pool in others)

    # Calls -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(
        self,
        job_id: str,
        frames: int,
        kind: Kind,
        *,
        avoid: Collection[str] = (),
        prefer: str | None = None,
        is_first: bool = False,
    ) -> AsyncIterator[Grant]:
        """Wait for a replica and hold it as long as the context lasts.

        `avoid`: pools that are taken only if no other runs. `prefer`: the pool to take if the
        others are not better. `is_first`: the call belongs to the first segment of its job.

        Raises:
            NoReplicaRuns: no pool has had a running replica for `no_replica_s`.
        """
        grant = await self._wait(
            _Call(
                job_id=job_id,
                frames=frames,
                rank=FIRST if is_first else _RANKS[kind],
                kind=kind,
                avoid=frozenset(avoid),
                prefer=prefer,
                arrived_at=self._clock(),
                granted=asyncio.get_running_loop().create_future(),
            )
        )
        try:
            yield grant
        except BaseException:
            self._end(grant)
            raise
        if is_first and kind is Kind.ENCODE and job_id not in self._kept:
            self._keep(grant)
        else:
            self._end(grant)

    @contextmanager
    def working_on(
        self, job_id: str, encode_frames: int, draw_frames: int, *, weight: float = 1.0
    ) -> Iterator[None]:
        """Count all frames of an opened job as waiting until they are handed out.

        `weight`: the job's share of the replicas beside other jobs.
        """
        self._queue.set_weight(job_id, weight)
        self._work[job_id] = _Work(draw_frames + ENCODE_COST * encode_frames)
        self._tell()
        try:
            yield
        finally:
            del self._work[job_id]
            self._queue.forget(job_id)
            self._let_go(job_id)
            self._tell()

    def measured(self, pool: str, kind: Kind, frames: int, seconds: float) -> None:
        """Count what a call took in its replica."""
        self._pools[pool].paces[kind].measured(frames, seconds)

    def expected_s(self, pool: str, kind: Kind, frames: int) -> float | None:
        """Return how long a call takes in a pool; None if that has not been measured there."""
        return self._pools[pool].paces[kind].expected_s(frames)

    # Facts -----------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `frames_waiting` may have changed."""
        self._listeners.append(callback)

    def frames_waiting(self) -> float:
        """Return the frames of opened jobs that no replica has begun to draw.

        A frame that has to be encoded counts as `ENCODE_COST` drawn frames. Calls of segments that
        are tried again count too.
        """
        queued = {call.job_id for call in self._queue.in_order()}
        return sum(
            max(self._queued_work(job_id), self._work[job_id].left if job_id in self._work else 0.0)
            for job_id in queued | set(self._work)
        )

    @property
    def calls_waiting(self) -> int:
        """How many calls wait for a replica."""
        return len(self._queue)

    def calls_in_flight(self) -> dict[str, int]:
        """Return how many calls the replicas of each pool work on."""
        return {name: len(pool.in_flight) for name, pool in self._pools.items()}

    def speed(self, pool: str) -> float:
        """Return the drawn frames a second of one replica of a pool, measured if possible."""
        return self._pools[pool].speed(Kind.GENERATE, calibration_of(self._pools.values()))

    def mean_speed(self) -> float:
        """Return the drawn frames a second of one running replica; 0 if none runs."""
        speeds = sum(pool.running * self.speed(name) for name, pool in self._pools.items())
        return speeds / self.running if self.running else 0.0

    def facts(self) -> QueueFacts:
        """Return what waits and what is in flight, for `/health`."""
        return QueueFacts(
            waiting_calls=len(self._queue),
            waiting_frames=self.frames_waiting(),
            pools={
                name: PoolFacts(
                    pool.running, len(pool.in_flight), pool.frames_in_flight, self.speed(name)
                )
                for name, pool in self._pools.items()
            },
        )

    # Handing out -----------------------------------------------------------------------------

    async def _wait(self, call: _Call) -> Grant:
        kept = self._take_kept(call)
        self._queue.push(call)
        if kept is not None:
            self._hand_out(call, kept.pool, self._clock())
        self._dispatch()
        try:
            return await call.granted
        except asyncio.CancelledError:
            granted = call.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._end(granted.result())
            else:
                self._queue.discard(call)
                self._dispatch()
            raise

    def _end(self, grant: Grant) -> None:
        self._grants.discard(grant)
        self._pools[grant.pool].in_flight.discard(grant.call)
        self._dispatch()

    def _keep(self, grant: Grant) -> None:
        """Keep the replica of a call that has ended for its job's next one."""
        self._grants.discard(grant)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(KEEP_S, self._let_go, grant.job_id)
        self._kept[grant.job_id] = grant, timer

    def _let_go(self, job_id: str) -> None:
        """Give the replica that is kept for a job, if there is one, to others."""
        if job_id in self._kept:
            grant, timer = self._kept.pop(job_id)
            timer.cancel()
            self._end(grant)

    def _take_kept(self, call: _Call) -> Grant | None:
        """Return the grant whose replica was kept for this call. None if there is none, or if its
        pool may not be used now.
        """
        if call.rank != FIRST or call.kind is not Kind.GENERATE or call.job_id not in self._kept:
            return None
        grant, timer = self._kept.pop(call.job_id)
        timer.cancel()
        pool = self._pools[grant.pool]
        pool.in_flight.discard(grant.call)
        has_room = len(pool.in_flight) < pool.running * CALLS_PER_REPLICA
        return grant if pool.is_on and has_room and grant.pool not in call.avoid else None

    def _dispatch(self) -> None:
        """Hand out what can start now, in fair order.

        A call for which a busy pool is the better choice is only booked there and waits; calls
        behind it see that pool as busier, and may take a replica that is free.
        """
        now, later = self._clock(), float("inf")
        forecasts = self._forecasts(now)
        waiting = list(self._queue.in_order()) if _has_room(forecasts) else []
        for call in waiting:
            if not _has_room(forecasts):
                break
            if call.granted.done():  # it is being cancelled
                continue
            allowed = self._allowed(forecasts, call.avoid)
            chosen = choose(allowed, call.kind, call.frames, self._policy, call.prefer)
            starts_s = chosen.book(call.kind, call.frames)
            if starts_s <= 0.0:
                self._hand_out(call, chosen.name, now)
            else:
                later = min(later, starts_s)
        self._look_again_in(later)
        self._give_up_if_nothing_runs()
        self._tell()

    def _forecasts(self, now: float) -> Mapping[str, Forecast]:
        if not len(self._queue):
            return {}
        calibration = calibration_of(self._pools.values())
        return {
            name: Forecast(pool, now, calibration)
            for name, pool in self._pools.items()
            if pool.running and pool.is_on
        }

    def _allowed(self, forecasts: Mapping[str, Forecast], avoid: Collection[str]) -> list[Forecast]:
        allowed = [forecast for name, forecast in forecasts.items() if name not in avoid]
        return allowed or list(forecasts.values())

    def _hand_out(self, call: _Call, pool: str, now: float) -> None:
        self._queue.take(call)
        in_flight = InFlight(call.kind, call.frames, now)
        grant = Grant(pool, now - call.arrived_at, in_flight, call.job_id)
        self._pools[pool].in_flight.add(in_flight)
        self._grants.add(grant)
        if call.job_id in self._work:
            work = self._work[call.job_id]
            work.left = max(0.0, work.left - _work_of(call))
        call.granted.set_result(grant)

    def _queued_work(self, job_id: str) -> float:
        return sum(_work_of(call) for call in self._queue.in_order() if call.job_id == job_id)

    def _look_again_in(self, seconds: float) -> None:
        """Decide again if a pool for which calls wait is not free when it was expected to be."""
        if self._looking_again is not None:
            self._looking_again.cancel()
            self._looking_again = None
        if seconds < float("inf"):
            loop = asyncio.get_running_loop()
            self._looking_again = loop.call_later(seconds + LOOK_AGAIN_S, self._dispatch)

    def _give_up_if_nothing_runs(self) -> None:
        if self.running or not len(self._queue):
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None
        elif self._giving_up is None:
            loop = asyncio.get_running_loop()
            self._giving_up = loop.call_later(self._no_replica_s, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        reasons = "; ".join(
            f"pool {name}: {pool.reason or 'no replica is running'}"
            for name, pool in self._pools.items()
        )
        message = f"No Generator replica has been running for {self._no_replica_s:g} s ({reasons})."
        logger.error("calls are given up", extra={"calls": len(self._queue), "reasons": reasons})
        for call in list(self._queue.in_order()):
            self._queue.discard(call)
            if not call.granted.done():
                call.granted.set_exception(NoReplicaRuns(message))
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _has_room(forecasts: Mapping[str, Forecast]) -> bool:
    return any(forecast.is_open for forecast in forecasts.values())


def _work_of(call: _Call) -> float:
    return call.frames * (ENCODE_COST if call.kind is Kind.ENCODE else 1.0)
