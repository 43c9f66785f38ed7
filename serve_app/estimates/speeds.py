"""Speeds from past jobs: seconds for each frame of each kind of work. Medians, so that one odd job
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from serve_app.estimates.job_length import JobLength
from serve_app.estimates.past_jobs import PastJob

OPENING = "validation"  # the published stage in which a chosen person is followed
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
    """Seconds of work of one replica: for each frame of the avatar that is encoded, and for each
    face that is drawn. `paid_share`: seconds that are paid for each second of work.
    """

    encode_s: float
    draw_s: float
    paid_share: float = 1.0

    def work_s(self, length: JobLength) -> float:
        """Return the seconds that one replica would need for a job."""
        return self.encode_s * length.prepared + self.draw_s * length.drawn


@dataclass(frozen=True, slots=True)
class Speeds:
    """What past jobs say. `prepare_s`, `load_s`, `listen_s`, `compose_s`: seconds of one thread for
    each frame. `follow_s`: for each frame through which a person is followed.

    `once`: seconds of the published stages that happen once in a job, without following.
    `opening_kept`: those of the opening of a job whose avatar has been kept.
    """

    jobs: int = 0
    prepare_s: float = 0.0
    load_s: float = 0.0
    listen_s: float = 0.0
    compose_s: float = 0.0
    follow_s: float = 0.0
    once: Mapping[str, Line] = field(default_factory=dict)
    opening_kept: Line = Line()
    pools: Mapping[str, PoolSpeed] = field(default_factory=dict)

    def stages_s(self, length: JobLength) -> dict[str, float]:
        """Return the seconds of work of a job, by published stage, without those of engines."""
        seconds = {name: line.at(length.frames) for name, line in self.once.items()}
        if length.has_avatar:
            opening_s = seconds.get(OPENING, 0.0)  # which is no shorter without a kept avatar
            seconds[OPENING] = min(opening_s, self.opening_kept.at(length.frames))
        seconds[OPENING] = seconds.get(OPENING, 0.0) + self.follow_s * length.followed
        return seconds | {
            "prepare": self.prepare_s * length.prepared,
            "load": self.load_s * length.kept,
            "listen": self.listen_s * length.to_draw,
            "compose": self.compose_s * length.composed,
        }


ONCE = ("download", OPENING, "stitch", "upload")


def speeds_of(jobs: Sequence[PastJob]) -> Speeds:
    """Return what these jobs say; without jobs, nothing takes any time."""
    if not jobs:
        return Speeds()
    usual = [job for job in jobs if not job.length.followed]
    new = [job for job in usual if not job.length.has_avatar] or usual
    kept = [job for job in usual if job.length.has_avatar] or usual
    # Without any other job, all of an opening counts as following.
    once = {name: _line(name, new if name == OPENING else jobs) for name in ONCE}
    return Speeds(
        jobs=len(jobs),
        prepare_s=_per_frame(jobs, "prepare", lambda length: length.prepared),
        load_s=_per_frame(jobs, "load", lambda length: length.kept),
        listen_s=_per_frame(jobs, "listen", lambda length: length.to_draw),
        compose_s=_per_frame(jobs, "compose", lambda length: length.composed),
        follow_s=_follow_s(jobs, once[OPENING]),
        once=once,
        opening_kept=_line(OPENING, kept),
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


def _line(name: str, jobs: Sequence[PastJob]) -> Line:
    return line_through([(job.length.frames, job.stage_s.get(name, 0.0)) for job in jobs])


def _per_frame(jobs: Sequence[PastJob], stage: str, count: Callable[[JobLength], int]) -> float:
    """Return the seconds of a stage for each of its frames, from the jobs that had some."""
    return _for_each((job.stage_s.get(stage, 0.0), count(job.length)) for job in jobs)


def _follow_s(jobs: Sequence[PastJob], opening: Line) -> float:
    """Return the seconds for each frame of following: what openings took longer for it."""
    return _median(
        max(0.0, job.stage_s.get(OPENING, 0.0) - opening.at(job.length.frames))
        / job.length.followed
        for job in jobs
        if job.length.followed
    )


def _pool_speed(name: str, jobs: Sequence[PastJob]) -> PoolSpeed:
    mine = [
        (job.pools[name], job.length)
        for job in jobs
        if name in job.pools and job.pools[name].share > 0
    ]
    return PoolSpeed(
        _for_each((pool.encode_s, pool.share * of.prepared) for pool, of in mine),
        _for_each((pool.draw_s, pool.share * of.drawn) for pool, of in mine),
        _median(pool.paid_s / pool.work_s for pool, _ in mine if pool.work_s > 0),
    )


def _for_each(found: Iterable[tuple[float, float]]) -> float:
    """Return the seconds for each frame, from the seconds and the frames of jobs: the median in
    which each frame counts once, because what a call costs besides its frames hides the speed of
    short jobs. Jobs without such frames are left out.
    """
    rates = sorted((seconds / frames, frames) for seconds, frames in found if frames > 0)
    half, seen = sum(frames for _, frames in rates) / 2, 0.0
    for seconds, frames in rates:
        seen += frames
        if seen >= half:
            return seconds
    return 0.0


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else 0.0
