"""What scaling learns from reports: how fast a class of GPU is, and how long jobs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MEMORY_OF_REPORTS = 0.95  # of what was known before stays with each report: some 20 count (a guess)
PRIOR_REPORTS = 2.0  # of one minute each, which the configured speed counts for (a guess)
SECONDS_OF_A_REPORT = 60.0
ENOUGH_JOBS = 5  # of one client, for its own mean (a guess)
UNKNOWN_FRAMES = 750  # half a minute at 25 frames/s, where nothing is known (a guess)


@dataclass(frozen=True, slots=True)
class Speed:
    """Frames and the busy seconds that they took; later reports weigh more."""

    frames: float = 0.0
    seconds: float = 0.0

    def with_report(self, frames: float, seconds: float) -> Speed:
        """Return the speed after a job of `frames` that occupied its worker for `seconds`."""
        if frames <= 0 or seconds <= 0:
            return self
        kept = MEMORY_OF_REPORTS
        return Speed(self.frames * kept + frames, self.seconds * kept + seconds)

    def frames_per_s(self, prior: float) -> float:
        """Return the frames/s; `prior` is the configured figure, which reports outweigh soon."""
        prior_s = PRIOR_REPORTS * SECONDS_OF_A_REPORT
        return (self.frames + prior * prior_s) / (self.seconds + prior_s)


Speeds = Mapping[str, Speed]
"""Speeds by GPU class."""


def learn_speed(speeds: Speeds, gpu_class: str, *, frames: float, seconds: float) -> Speeds:
    """Return the speeds after the report of a finished job."""
    before = speeds.get(gpu_class, Speed())
    return {**speeds, gpu_class: before.with_report(frames, seconds)}


def expected_frames(
    known: float | None, of_client: Sequence[float], of_all: Sequence[float]
) -> float:
    """Return the frames of a job: those that are known, or what comparable jobs had.

    `of_client` and `of_all` have the frames of the last jobs that finished, some 50 of each. It is
    the mean, not the median: what counts is the work of all jobs that wait together.
    """
    if known is not None and known > 0:
        return known
    for frames in (of_client if len(of_client) >= ENOUGH_JOBS else (), of_all):
        if frames:
            return sum(frames) / len(frames)
    return UNKNOWN_FRAMES


def finish_by(submitted_at: float, deadline: float | None, usual_s: float) -> float:
    """Return the instant at which a job should have finished, for `Work.finish_by`.

    It is the deadline, or `usual_s` after the submission: the target wait and the time that the job
    will probably take.
    """
    return submitted_at + usual_s if deadline is None else deadline
