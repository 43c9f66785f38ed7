"""The finished jobs that estimates are learnt from, read from the metrics of their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.estimates.job_length import JobLength

REMEMBERED = 100  # the newest jobs; older ones ran with other settings or on other machines
ENOUGH_ALIKE = 3  # jobs with pictures of a similar size, so that others are left out
ALIKE = 2.0  # times as many pixels, or as few, are similar


@dataclass(frozen=True, slots=True)
class PoolPast:
    """What a pool did for a job: its share of the frames, 0 to 1, and seconds of work to encode
    blocks and to draw, and seconds paid for.
    """

    share: float
    encode_s: float
    draw_s: float
    paid_s: float

    @property
    def work_s(self) -> float:
        """Seconds of work."""
        return self.encode_s + self.draw_s


@dataclass(frozen=True, slots=True)
class PastJob:
    """One finished job. `length`: what it has done; the `pixels` in it are 0 if they are not known.
    `wall_s`: without the wait for a place. `stage_s`: seconds of work by published stage.
    """

    length: JobLength
    wall_s: float
    stage_s: Mapping[str, float]
    pools: Mapping[str, PoolPast]


def past_job(metrics: Mapping[str, Any]) -> PastJob | None:
    """Return what the metrics of a success say; None if they have no receipt, or an odd one.

    Jobs that prepared an avatar have none, and neither have jobs of releases before receipts.
    """
    try:
        receipt = metrics["receipt"]
        drawn_in = int(receipt["frames"])
        job = PastJob(
            length=_length(metrics, receipt),
            wall_s=float(receipt["wall_s"]),
            stage_s={name: float(value) for name, value in receipt["stage_s"].items()},
            pools={str(pool["pool"]): _pool_past(pool, drawn_in) for pool in receipt["pools"]},
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None
    return job if job.length.frames > 0 and job.wall_s > 0 else None


def _length(metrics: Mapping[str, Any], receipt: Mapping[str, Any]) -> JobLength:
    """Return what a job has done. Receipts of earlier releases do not count frames by stage; they
    are read as if each frame of the output had needed one of the avatar and shown one face.
    """
    drawn_in, blocks = int(receipt["frames"]), receipt["avatar_blocks"]
    made, cached = int(blocks["made"]), int(blocks["cached"])
    made_frames = round(drawn_in * made / (made + cached)) if made + cached else drawn_in
    found = receipt.get("stage_frames")
    counted: Mapping[str, Any] = {} if found is None else found
    composed = int(counted.get("compose", drawn_in))
    prepared = int(counted.get("prepare", made_frames if found is None else 0))
    kept = int(counted.get("load", drawn_in - made_frames if found is None else 0))
    return JobLength(
        frames=composed,
        first_frames=-(-(prepared + kept) // max(1, made + cached)),
        pixels=int(metrics.get("width") or 0) * int(metrics.get("height") or 0),
        composed=composed,
        to_draw=drawn_in,
        drawn=int(receipt.get("faces", drawn_in)),
        prepared=prepared,
        kept=kept,
        followed=int(counted.get("validation", 0)),
    )


def _pool_past(pool: Mapping[str, Any], drawn_in: int) -> PoolPast:
    work_s, encode_s = float(pool["work_s"]), float(pool.get("encode_s", 0.0))
    return PoolPast(
        share=int(pool["frames"]) / drawn_in,
        encode_s=encode_s,
        draw_s=work_s - encode_s,
        paid_s=work_s + float(pool["idle_s"]) + float(pool["lost_s"]),
    )


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
        alike = [job for job in self._jobs if _is_alike(job.length.pixels, pixels)]
        return alike if len(alike) >= ENOUGH_ALIKE else list(self._jobs)


def _is_alike(one: int, other: int) -> bool:
    return 0 < max(one, other) <= ALIKE * min(one, other)
