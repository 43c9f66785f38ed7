"""Which decoded frame each frame of the constant rate shows. Pure, except for its file.

The reference turns a video into numbered images with ffmpeg's constant-rate synchronisation
(docs/reference.md §1.1). `constant_rate_order` is that synchronisation: it repeats and drops
decoded frames exactly as `ffmpeg -i IN DIR/%08d.png` does (ffmpeg 5.1, `fftools/ffmpeg.c`,
`do_video_out`).

The index is a file next to the media, because an hour of video has a hundred thousand entries and
`SourceVideo` has to stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# ffmpeg: do_video_out
_TOLERANCE = 1.1  # frames of drift before one is dropped or repeated
_MAX_REPEATS = 3600 * 30 * 30  # `dts_error_threshold * 30`: a longer gap is taken for a fault


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """`pts`: (m,) int64, decoded frames in display order, in ticks of `time_base` of the file that
    is read. `shown`: (n,) int32, the decoded frame of each constant-rate frame, never decreasing.
    `keys`: (j,) int64 ascending, the times at which decoding can begin; empty if only at the start.
    """

    pts: NDArray[np.int64]
    shown: NDArray[np.int32]
    keys: NDArray[np.int64]
    time_base: Fraction

    @classmethod
    def of(
        cls, pts: Sequence[int], shown: Sequence[int], keys: Sequence[int], time_base: Fraction
    ) -> FrameIndex:
        return cls(
            np.array(pts, np.int64), np.array(shown, np.int32), np.array(keys, np.int64), time_base
        )

    def save(self, path: Path) -> None:
        base = np.array([self.time_base.numerator, self.time_base.denominator], np.int64)
        with path.open("wb") as file:
            np.savez(file, pts=self.pts, shown=self.shown, keys=self.keys, base=base)

    @classmethod
    def load(cls, path: Path) -> FrameIndex:
        with np.load(path, allow_pickle=False) as file:
            base = Fraction(int(file["base"][0]), int(file["base"][1]))
            return cls(file["pts"], file["shown"], file["keys"], base)


def constant_rate_order(
    times: Sequence[float], durations: Sequence[int], is_only_stream: bool
) -> list[int]:
    """Return the decoded frame that each constant-rate frame shows.

    `times`: when each decoded frame begins, in frames of the constant rate, the file's start being
    0. `durations`: how long each lasts, in whole frames; 0 if unknown. `is_only_stream`: ffmpeg
    then does not fill the time before the first frame.
    """
    written: list[int] = []
    slot = 0  # ffmpeg's sync_opts: like len(written), but for what is skipped at the start
    repeats = [0, 0, 0]
    last: int | None = None
    for frame, (time, whole_frames) in enumerate(zip(times, durations, strict=True)):
        duration = float(whole_frames or 1)
        drift = time - slot
        end = drift + duration
        if drift < 0 < end:
            drift = 0.0
        if is_only_stream and not written and drift >= 0.5:
            end, drift, slot = duration, 0.0, round(time)
        before, count = _copies(drift, end)
        repeats = [before, *repeats[:2]]
        if count > _MAX_REPEATS:
            continue
        shown_before = frame if last is None else last
        written += [shown_before] * min(before, count) + [frame] * max(0, count - before)
        slot += count
        last = frame
    if last is not None:
        written += [last] * sorted(repeats)[1]  # at the end the median of the last three repeats
    return written


def _copies(drift: float, end: float) -> tuple[int, int]:
    """Return how often the frame before and how many frames in all are written now."""
    if end < -_TOLERANCE:
        return 0, 0
    if end > _TOLERANCE:
        return (round(drift - 0.6) if drift > _TOLERANCE else 0), round(end)
    return 0, 1


def frame_times(
    pts: Sequence[int], start: Fraction, time_base: Fraction, fps: Fraction
) -> list[float]:
    """Return `pts` in frames of `fps` after `start` (seconds), rounded as ffmpeg rounds them.

    ffmpeg keeps up to 16 bits below one frame and pushes the value off exact midpoints.
    """
    bits = max(0, min(16, 29 - (fps.numerator.bit_length() - 1)))
    unit = 1 << bits
    origin = _nearest(start / time_base)
    scale = time_base * fps * unit
    times = []
    for value in pts:
        time = _nearest((value - origin) * scale) / unit
        times.append(time + (time > 0) / (1 << 17) - (time < 0) / (1 << 17))
    return times


def _nearest(value: Fraction) -> int:
    """Round half away from zero, as av_rescale_q does."""
    magnitude = abs(value)
    whole = (2 * magnitude.numerator + magnitude.denominator) // (2 * magnitude.denominator)
    return whole if value >= 0 else -whole
