"""The receipt of a job: what it used, what of that the model worked, and what it cost.

docs/scaling.md explains each number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from musetalk_pipeline.receipts.cost_sum import UNKNOWN_CLASS, JobWork, PoolWork

HOUR_S, MINUTE_S = 3600.0, 60.0
JOINS_CLASSES = "+"


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars an hour. `pools`: of one replica, by pool. `stages`: of one thread of a stage
    without an engine, by published stage. What is not named costs nothing.
    """

    pools: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_known(self) -> bool:
        """Whether anything has a price."""
        return any((*self.pools.values(), *self.stages.values()))

    def of_pool(self, work: PoolWork) -> float | None:
        """Return what a pool's paid seconds cost; None if no price is known at all."""
        if not self.are_known:
            return None
        return work.paid_s / HOUR_S * self.pools.get(work.pool or "", 0.0)

    def of_stages(self, seconds: Mapping[str, float]) -> float:
        """Return what the seconds of the stages without an engine cost."""
        return sum(seconds.get(name, 0.0) / HOUR_S * usd for name, usd in self.stages.items())


NO_PRICES = Prices()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a job used that has ended.

    `stage_s`: seconds of work by published stage. `finished_s`: the length of the video; 0 if there
    is none, because the job failed or was cancelled. `wall_s`:
    of the attempt, without the wait for a place. `usd_by_pool`: in the order of `work.pools`.
    """

    work: JobWork
    stage_s: Mapping[str, float]
    finished_s: float
    wall_s: float
    usd: float | None
    usd_by_pool: tuple[float | None, ...]

    @property
    def frames(self) -> int:
        """Output frames, each of them drawn by one pool."""
        return sum(pool.frames for pool in self.work.pools)

    @property
    def frames_by_class(self) -> dict[str, int]:
        """Output frames by class of GPU, the largest number first."""
        frames: dict[str, int] = {}
        for pool in self.work.pools:
            for name, count in pool.frames_by_class.items():
                frames[name] = frames.get(name, 0) + count
        return dict(sorted(frames.items(), key=lambda item: (-item[1], item[0])))

    @property
    def gpu_class(self) -> str:
        """The class that drew; several are joined by `+`, the one with the most frames first. Empty
        if no replica named its class.
        """
        return JOINS_CLASSES.join(name for name in self.frames_by_class if name != UNKNOWN_CLASS)

    @property
    def paid_s(self) -> float:
        """Seconds of engine replicas that the job occupied."""
        return sum(pool.paid_s for pool in self.work.pools)

    @property
    def model_share(self) -> float | None:
        """The part of the paid seconds in which an engine made what is in the video, 0 to 1."""
        work_s, paid_s = sum(pool.work_s for pool in self.work.pools), self.paid_s
        return min(1.0, work_s / paid_s) if paid_s else None

    @property
    def usd_per_finished_minute(self) -> float | None:
        """What a minute of such a video costs; None without prices, or without a video."""
        if self.usd is None or not self.finished_s:
            return None
        return self.usd / self.finished_s * MINUTE_S


def receipt_of(
    work: JobWork,
    prices: Prices,
    *,
    finished_s: float,
    wall_s: float,
    last_stages: Mapping[str, float] | None = None,
) -> Receipt:
    """Return the receipt of a job. `last_stages`: seconds of work after `work` was summed up."""
    stage_s = dict(work.stage_seconds)
    for name, seconds in (last_stages or {}).items():
        stage_s[name] = stage_s.get(name, 0.0) + seconds
    by_pool = tuple(prices.of_pool(pool) for pool in work.pools)
    usd = sum(usd or 0.0 for usd in by_pool) + prices.of_stages(stage_s)
    return Receipt(
        work=work,
        stage_s=stage_s,
        finished_s=finished_s,
        wall_s=wall_s,
        usd=usd if prices.are_known else None,
        usd_by_pool=by_pool,
    )


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """Return the form that answers, sidecars and reports have: seconds to the millisecond."""
    work = receipt.work
    pools = [
        {
            "pool": pool.pool,
            "frames": pool.frames,
            "work_s": _seconds(pool.work_s),
            "idle_s": _seconds(pool.idle_s),
            "lost_s": _seconds(pool.lost_s),
            "encode_s": _seconds(pool.encode_s),
            "usd": _usd(usd),
        }
        for pool, usd in zip(work.pools, receipt.usd_by_pool, strict=True)
    ]
    share = receipt.model_share
    return {
        "frames": receipt.frames,
        "frames_by_gpu_class": receipt.frames_by_class,
        "pools": pools,
        "stage_frames": dict(work.stage_frames),
        "faces": work.faces,
        "stage_s": {name: _seconds(value) for name, value in receipt.stage_s.items()},
        "waiting_s": {name: _seconds(value) for name, value in work.waiting_s.items()},
        "wall_s": _seconds(receipt.wall_s),
        "finished_s": _seconds(receipt.finished_s),
        "paid_s": _seconds(receipt.paid_s),
        "model_share": None if share is None else round(share, 4),
        "usd": _usd(receipt.usd),
        "usd_per_finished_minute": _usd(receipt.usd_per_finished_minute),
        "avatar_blocks": {"made": work.blocks_made, "cached": work.blocks_cached},
        "retries": {"segments": work.retried_segments, "frames": work.retried_frames},
    }


def receipt_line(receipt: Mapping[str, Any]) -> str:
    """Return the main numbers of a receipt, as `receipt_json` gives it, as one readable line."""
    drawn = [
        f"{frames} frames" + ("" if name == UNKNOWN_CLASS else f" by {name}")
        for name, frames in receipt["frames_by_gpu_class"].items()
    ]
    parts = [", ".join(drawn)]
    if (share := receipt["model_share"]) is not None:
        parts.append(f"engines occupied for {receipt['paid_s']:.1f} s, {share:.0%} of it at work")
    if receipt["usd"] is not None:
        parts.append(
            f"${receipt['usd']:.4f}, ${receipt['usd_per_finished_minute']:.4f} a finished minute"
        )
    if cached := receipt["avatar_blocks"]["cached"]:
        parts.append(f"{cached} blocks from the cache")
    if tries := receipt["retries"]["segments"]:
        parts.append("1 try lost" if tries == 1 else f"{tries} tries lost")
    return "; ".join(parts)


def _seconds(value: float) -> float:
    return round(value, 3)


def _usd(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
