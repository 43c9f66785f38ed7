"""The attempts at a job as bars on one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.store.values import Attempt, Job

WIDTH = 1000.0  # of the drawing, in its own units
MIN_WIDTH = 4.0  # of an attempt that was over at once
MAX_BARS = 60  # the newest


@dataclass(frozen=True, slots=True)
class Bar:
    """An attempt from `x`, `width` wide. `kind` is how it ended, or `running`."""

    number: int
    kind: str
    x: float
    width: float


def bars(job: Job, attempts: Iterable[Attempt], now: float) -> tuple[Bar, ...]:
    """Return the attempts on a line from the job's submission to its end, or to now."""
    begin = job.created_at
    length = max((job.ended_at or now) - begin, 0.001)
    found = []
    for attempt in attempts:
        x = WIDTH * _share(attempt.started_at - begin, length)
        end = WIDTH * _share((attempt.ended_at or now) - begin, length)
        width = max(MIN_WIDTH, end - x)
        kind = attempt.ending.value if attempt.ending else "running"
        found.append(Bar(attempt.number, kind, round(min(x, WIDTH - width), 1), round(width, 1)))
    return tuple(found[-MAX_BARS:])


def _share(seconds: float, length: float) -> float:
    return min(1.0, max(0.0, seconds / length))
