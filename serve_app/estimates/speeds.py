"""Speeds from past jobs. Medians, so that one odd job changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from serve_app.estimates.past_jobs import PastJob

PREPARING = ("prepare", "listen")  # published stages on the threads of the Preprocessor
COMPOSING = ("compose",)  # and of the Finisher
AROUND = ("download", "validation", "stitch", "upload")  # once in a job
MOST_PAIRED = 40  # jobs that a line is drawn through; the pairs of them are compared


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds by the length of a job: `at_zero` plus `per_frame` for each frame."""

    at_zero: float = 0.0
    per_frame: float = 0.0

    def at(self, frames: int) -> float:
        """Return the seconds of a job of so many frames."""
        return self.at_zero + self.per_frame * frames


@dataclass(frozen=True, slots=True)
class PoolSpeed:
    """Seconds of one replica for each drawn frame: of work, and those that are paid for."""

    work_s: float
    paid_s: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """What past jobs say. `prepare_s` and `compose_s`: seconds of one thread for each frame.

    `around`: seconds of what happens once in a job. `stages`: seconds of each published stage.
    """

    jobs: int = 0
    prepare_s: float = 0.0
    compose_s: float = 0.0
    around: Line = Line()
    stages: Mapping[str, Line] = field(default_factory=dict)
    pools: Mapping[str, PoolSpeed] = field(default_factory=dict)


def speeds_of(jobs: Sequence[PastJob]) -> Speeds:
    """Return what these jobs say; without jobs, nothing takes any time."""
    if not jobs:
        return Speeds()
    # Blocks that were loaded took no preparation, and other jobs cannot expect that.
    made = [job for job in jobs if job.made_share > 0]
    names = {name for job in jobs for name in job.stage_s}
    return Speeds(
        jobs=len(jobs),
        prepare_s=_median(_sum(job, PREPARING) / (job.frames * job.made_share) for job in made),
        compose_s=_median(_sum(job, COMPOSING) / job.frames for job in jobs),
        around=line_through([(job.frames, _sum(job, AROUND)) for job in jobs]),
        stages={
            name: line_through([(job.frames, job.stage_s.get(name, 0.0)) for job in jobs])
            for name in sorted(names)
        },
        pools={name: _pool_speed(name, jobs) for name in {n for job in jobs for n in job.pools}},
    )


def line_through(points: Sequence[tuple[int, float]]) -> Line:
    """Return the line of the median slope of all pairs of points (Theil and Sen).

    Neither part is below 0. With a single length it is the median, whatever the length.
    """
    points = points[-MOST_PAIRED:]
    slopes = [(s1 - s0) / (f1 - f0) for (f0, s0), (f1, s1) in combinations(points, 2) if f1 != f0]
    slope = max(0.0, median(slopes)) if slopes else 0.0
    return Line(max(0.0, _median(seconds - slope * frames for frames, seconds in points)), slope)


def _pool_speed(name: str, jobs: Sequence[PastJob]) -> PoolSpeed:
    mine = [job.pools[name] for job in jobs if name in job.pools and job.pools[name].frames > 0]
    return PoolSpeed(
        _median(pool.work_s / pool.frames for pool in mine),
        _median(pool.paid_s / pool.frames for pool in mine),
    )


def _sum(job: PastJob, stages: Iterable[str]) -> float:
    return sum(job.stage_s.get(name, 0.0) for name in stages)


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else 0.0
