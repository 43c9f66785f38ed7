"""The finished jobs that estimates are learnt from, read from the metrics of their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REMEMBERED = 100  # the newest jobs; older ones ran with other settings or on other machines
ENOUGH_ALIKE = 3  # jobs with pictures of a similar size, so that others are left out
ALIKE = 2.0  # times as many pixels, or as few, are similar


@dataclass(frozen=True, slots=True)
class PoolPast:
    """What a pool did for a job: frames that it drew, seconds of work, and seconds paid for."""

    frames: int
    work_s: float
    paid_s: float


@dataclass(frozen=True, slots=True)
class PastJob:
    """One finished job.

    `pixels`: of its picture; None if it is not known. `wall_s`: without the wait for a place.
    `stage_s`: seconds of work by published stage. `made_share`: of the blocks of its avatar that
    were made rather than loaded, 0 to 1.
    """

    frames: int
    pixels: int | None
    wall_s: float
    stage_s: Mapping[str, float]
    pools: Mapping[str, PoolPast]
    made_share: float


def past_job(metrics: Mapping[str, Any]) -> PastJob | None:
    """Return what the metrics of a success say; None if they have no receipt, or an odd one.

    Jobs that prepared an avatar have none, and neither have jobs of releases before receipts.
    """
    try:
        receipt = metrics["receipt"]
        blocks = receipt["avatar_blocks"]
        made, cached = int(blocks["made"]), int(blocks["cached"])
        width, height = metrics.get("width"), metrics.get("height")
        job = PastJob(
            frames=int(receipt["frames"]),
            pixels=int(width) * int(height) if width and height else None,
            wall_s=float(receipt["wall_s"]),
            stage_s={name: float(value) for name, value in receipt["stage_s"].items()},
            pools={str(pool["pool"]): _pool_past(pool) for pool in receipt["pools"]},
            made_share=made / (made + cached) if made + cached else 1.0,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return job if job.frames > 0 and job.wall_s > 0 else None


def _pool_past(pool: Mapping[str, Any]) -> PoolPast:
    work_s = float(pool["work_s"])
    paid_s = work_s + float(pool["idle_s"]) + float(pool["lost_s"])
    return PoolPast(int(pool["frames"]), work_s, paid_s)


class PastJobs:
    """The newest finished jobs of this deployment. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._jobs: deque[PastJob] = deque(maxlen=REMEMBERED)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Learn from a job that has just succeeded."""
        job = past_job(metrics)
        if job is not None:
            self._jobs.append(job)

    def extend_back(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Learn from jobs that ended before all that are known, the newest of them first."""
        for one in metrics:
            job = past_job(one)
            if job is not None and len(self._jobs) < REMEMBERED:
                self._jobs.appendleft(job)

    def like(self, pixels: int) -> Sequence[PastJob]:
        """Return the jobs to learn from for a picture of so many pixels: those of a similar size
        if there are enough of them, else all.
        """
        alike = [job for job in self._jobs if job.pixels and _is_alike(job.pixels, pixels)]
        return alike if len(alike) >= ENOUGH_ALIKE else list(self._jobs)


def _is_alike(one: int, other: int) -> bool:
    return max(one, other) <= ALIKE * min(one, other)
