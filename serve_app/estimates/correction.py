"""What past jobs took beside what the rule of forecasts says about them.

    seconds = factor of the kind * (what every job takes more + ratio * seconds by the rule)

The rule leaves out that stages share processors and disturb each other, which makes all of a job
slower, and the calls between the stages, which take a short job as long as a long one. The two are
told apart by jobs of one kind with different lengths. All jobs decide together; those of the same
kind as the new one add a factor, among which 1 counts as one more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from serve_app.estimates.forecast import Runners, forecast
from serve_app.estimates.job_length import JobLength
from serve_app.estimates.past_jobs import PastJob
from serve_app.estimates.speeds import MOST_PAIRED, Speeds

LEAST, MOST = 0.1, 10.0  # beyond that, something else was wrong
OTHER_LENGTH = 1.5  # times as long by the rule, so that two jobs say what length costs
ENOUGH_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Correction:
    """`more_s`: seconds that every job takes more. `ratio`: of the seconds by the rule."""

    more_s: float = 0.0
    ratio: float = 1.0

    def of(self, by_rule_s: float) -> float:
        """Return what a job takes that takes `by_rule_s` by the rule."""
        return self.more_s + self.ratio * by_rule_s


@dataclass(frozen=True, slots=True)
class _Compared:
    """A past job: seconds by the rule, and those that it took."""

    length: JobLength
    rule_s: float
    took_s: float


def correction_of(
    jobs: Sequence[PastJob], length: JobLength, speeds: Speeds, runners: Runners
) -> Correction:
    """Return the correction for a new job; none without past jobs."""
    compared = [
        _Compared(job.length, rule_s, job.wall_s)
        for job in jobs[-MOST_PAIRED:]
        if (rule_s := forecast(job.length, speeds, runners).seconds) > 0
    ]
    if not compared:
        return Correction()
    usual = _of_all(compared)
    alike = [
        one.took_s / usual.of(one.rule_s) for one in compared if one.length.kind == length.kind
    ]
    factor = _bounded(median([1.0, *alike]))
    return Correction(usual.more_s * factor, usual.ratio * factor)


def _of_all(compared: Sequence[_Compared]) -> Correction:
    """Return the line of the median slope; without jobs of different lengths, the median ratio."""
    slopes = [
        (one.took_s - other.took_s) / (one.rule_s - other.rule_s)
        for one, other in combinations(compared, 2)
        if one.length.kind == other.length.kind and _differ(one.rule_s, other.rule_s)
    ]
    if len(slopes) >= ENOUGH_PAIRS:
        ratio = _bounded(median(slopes))
        more_s = median(one.took_s - ratio * one.rule_s for one in compared)
        if more_s >= 0:
            return Correction(more_s, ratio)
    return Correction(0.0, _bounded(median(one.took_s / one.rule_s for one in compared)))


def _differ(one_s: float, other_s: float) -> bool:
    return max(one_s, other_s) > OTHER_LENGTH * min(one_s, other_s)


def _bounded(ratio: float) -> float:
    return min(MOST, max(LEAST, ratio))
