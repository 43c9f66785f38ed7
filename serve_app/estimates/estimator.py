"""Estimates of one ingress: what is known of past jobs, applied to what runs now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from serve_app.estimates.correction import correction_of
from serve_app.estimates.forecast import (
    UNKNOWN_RUNNERS,
    Forecast,
    Runners,
    cost_usd,
    forecast,
    frame_s,
)
from serve_app.estimates.job_length import JobLength, whole_job
from serve_app.estimates.past_jobs import PastJob, PastJobs
from serve_app.estimates.speeds import Speeds, speeds_of

Source = Literal["receipts", "configuration"]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The work before a new job: frames of opened jobs, and jobs that wait to be opened."""

    frames: float = 0.0
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will take, without the wait for others; `queue_s` is that wait.

    `usd`: None if no price is configured. `source`: what the speeds come from, and `jobs`, how many
    past jobs those are. `runners`: what ran when the estimate was made. `length`: what there is to
    do.
    """

    seconds: float
    usd: float | None
    queue_s: float
    source: Source
    jobs: int
    runners: Runners
    length: JobLength


class Estimator:
    """Knows past jobs, and makes estimates. All methods belong to one event loop.

    Args:
        runners: returns what runs now.
        prices: returns the prices of now.
        ahead: returns the work before a new job, given how many jobs wait or run.
    """

    def __init__(
        self,
        runners: Callable[[], Runners] = lambda: UNKNOWN_RUNNERS,
        prices: Callable[[], Prices] = lambda: NO_PRICES,
        ahead: Callable[[int], Ahead] = lambda unfinished: Ahead(0.0, unfinished),
    ) -> None:
        self.past = PastJobs()
        self._runners = runners
        self._prices = prices
        self._ahead = ahead

    def estimate(self, length: JobLength, unfinished: int) -> Estimate:
        """Return what a job will take. `unfinished`: jobs that wait or run now."""
        jobs, runners = self.past.like(length.pixels), self._runners()
        speeds = speeds_of(jobs)
        ahead = self._ahead(unfinished)
        frames_ahead = ahead.frames + ahead.jobs * _usual_frames(jobs, length.frames)
        usual = whole_job(length.frames, length.first_frames, length.pixels)
        slower = correction_of(jobs, usual, speeds, runners).ratio
        return Estimate(
            seconds=_corrected(jobs, length, speeds, runners, lambda made: made.seconds),
            usd=cost_usd(length, speeds, runners, self._prices()),
            queue_s=frames_ahead * frame_s(speeds, runners) * slower,
            source="receipts" if jobs else "configuration",
            jobs=len(jobs),
            runners=runners,
            length=length,
        )

    def after_opening_s(self, length: JobLength) -> float | None:
        """Return the seconds from the opening of a job to its end; None before the first job."""
        jobs = self.past.like(length.pixels)
        if not jobs:
            return None
        speeds, runners = speeds_of(jobs), self._runners()
        return _corrected(jobs, length, speeds, runners, lambda made: made.frames_s)


def _corrected(
    jobs: Sequence[PastJob],
    length: JobLength,
    speeds: Speeds,
    runners: Runners,
    part: Callable[[Forecast], float],
) -> float:
    """Return the seconds of a part of a job. A job that does less takes no longer than one that
    does all, even if the past ones of its kind waited for something.
    """
    return min(
        correction_of(jobs, one, speeds, runners).of(part(forecast(one, speeds, runners)))
        for one in (length, length.in_full)
    )


def _usual_frames(jobs: Sequence[PastJob], own: int) -> float:
    """Return the frames of a job whose media have not been read yet."""
    return median(job.length.frames for job in jobs) if jobs else float(own)
