"""The costs of one job added up, whatever the order in which they become known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from musetalk_pipeline.cost import StageCost, StageName

# place: of a job, for its turn. queue: of segments that are ready, for a pool. pool: of calls, for
# the engine of their replica. stages: of calls, for a thread of a stage without an engine.
WaitName = Literal["place", "queue", "pool", "stages"]
WAITS: tuple[WaitName, ...] = ("place", "queue", "pool", "stages")

UNKNOWN_CLASS = "unknown"  # of a replica that does not say which GPU it has


@dataclass(frozen=True, slots=True)
class PoolWork:
    """What the engines of one pool did for a job.

    `pool`: None in a single process. `frames_by_class`: output frames that were drawn, by class of
    GPU. `work_s`: of calls whose results are used. `idle_s`: without work, between two calls, the
    second of which was the job's. `lost_s`: of tries that failed. `encode_s`: of the work, what
    made blocks of the avatar.
    """

    pool: str | None
    frames_by_class: Mapping[str, int]
    work_s: float
    idle_s: float
    lost_s: float
    encode_s: float = 0.0

    @property
    def frames(self) -> int:
        """Output frames that were drawn here."""
        return sum(self.frames_by_class.values())

    @property
    def paid_s(self) -> float:
        """Seconds of replicas that the job occupied."""
        return self.work_s + self.idle_s + self.lost_s


@dataclass(frozen=True, slots=True)
class JobWork:
    """The costs of a job so far.

    `stage_seconds`: of work, by published stage. `waiting_s`: by what was waited for; it adds up
    waits that happened at the same time. `blocks_made`, `blocks_cached`: blocks of the avatar that
    were encoded, and those that were loaded from the cache. `retried_segments`, `retried_frames`:
    tries that failed, and their frames. `stage_frames`: that calls worked on, by stage; those of
    `validation` are the frames through which a chosen person was followed. `faces`: that were
    drawn.
    """

    stage_seconds: Mapping[str, float]
    peak_memory_mib: float | None
    pools: tuple[PoolWork, ...]
    waiting_s: Mapping[WaitName, float]
    blocks_made: int = 0
    blocks_cached: int = 0
    retried_segments: int = 0
    retried_frames: int = 0
    stage_frames: Mapping[StageName, int] = field(default_factory=dict)
    faces: int = 0


class CostSum:
    """The costs of a job so far. A call that is added twice counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # by published stage
        self.peak_memory_mib: float | None = None
        self._waiting_s: dict[WaitName, float] = dict.fromkeys(WAITS, 0.0)
        self._engines: dict[tuple[str | None, str | None], _EngineSum] = {}
        self._lost_s: dict[str, float] = {}
        self._blocks_made = self._blocks_cached = 0
        self._frames: Counter[StageName] = Counter()
        self._faces = 0
        self._retried_segments = self._retried_frames = 0
        self._counted: set[str] = set()

    def add(self, costs: Iterable[StageCost]) -> None:
        """Count the calls that have not been counted yet."""
        for cost in costs:
            if cost.call_id in self._counted:
                continue
            self._counted.add(cost.call_id)
            self.add_seconds(cost.published_stage, cost.seconds)
            self.add_wait("pool" if cost.is_of_engine else "stages", cost.waited_s)
            if cost.peak_memory_mib is not None:
                self.peak_memory_mib = max(self.peak_memory_mib or 0.0, cost.peak_memory_mib)
            if cost.is_of_engine:
                self._engines.setdefault((cost.pool, cost.replica), _EngineSum()).add(cost)
            self._blocks_made += cost.stage == "encode"
            self._blocks_cached += cost.stage == "load"
            self._frames[cost.stage] += cost.frames
            self._faces += cost.faces

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count seconds of something that is not a call of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_wait(self, waited_for: WaitName, seconds: float) -> None:
        """Count seconds of waiting."""
        self._waiting_s[waited_for] += seconds

    def add_lost(self, frames: int, held_s: Mapping[str, float]) -> None:
        """Count a try at a segment that failed. `held_s`: how long it held a replica, by pool."""
        for pool, seconds in held_s.items():
            self._lost_s[pool] = self._lost_s.get(pool, 0.0) + seconds
        self._retried_segments += 1
        self._retried_frames += frames

    def so_far(self) -> JobWork:
        """Return what has been counted."""
        pools = sorted({pool for pool, _ in self._engines} | self._lost_s.keys(), key=str)
        return JobWork(
            stage_seconds=dict(self.seconds),
            peak_memory_mib=self.peak_memory_mib,
            pools=tuple(self._pool_work(pool) for pool in pools),
            waiting_s=dict(self._waiting_s),
            blocks_made=self._blocks_made,
            blocks_cached=self._blocks_cached,
            retried_segments=self._retried_segments,
            retried_frames=self._retried_frames,
            stage_frames={stage: count for stage, count in self._frames.items() if count},
            faces=self._faces,
        )

    def _pool_work(self, pool: str | None) -> PoolWork:
        engines = [engine for (of, _), engine in self._engines.items() if of == pool]
        frames: dict[str, int] = {}
        for engine in engines:
            for name, count in engine.frames.items():
                frames[name] = frames.get(name, 0) + count
        return PoolWork(
            pool=pool,
            frames_by_class=frames,
            work_s=sum(engine.work_s for engine in engines),
            idle_s=sum(engine.idle_s for engine in engines),
            lost_s=0.0 if pool is None else self._lost_s.get(pool, 0.0),
            encode_s=sum(engine.encode_s for engine in engines),
        )


@dataclass(slots=True)
class _EngineSum:
    """What one engine did for a job."""

    frames: dict[str, int] = field(default_factory=dict)
    work_s: float = 0.0
    encode_s: float = 0.0
    _idle_s: float = 0.0
    _first: StageCost | None = None

    @property
    def idle_s(self) -> float:
        """Seconds without work, of which those before the job's first call are not its own."""
        return self._idle_s - (self._first.idle_s if self._first is not None else 0.0)

    def add(self, cost: StageCost) -> None:
        self.work_s += cost.seconds
        self._idle_s += cost.idle_s
        if self._first is None or cost.began < self._first.began:
            self._first = cost
        if cost.stage == "encode":
            self.encode_s += cost.seconds
        if cost.stage == "generate":
            name = cost.gpu_class or UNKNOWN_CLASS
            self.frames[name] = self.frames.get(name, 0) + cost.frames
