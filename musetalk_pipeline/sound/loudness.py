"""When somebody speaks: a weight for every output frame, so that the mouth can rest in silence.

It is computed from a few seconds of sound around each frame, so segments can be computed in any
order and the file is never held whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from musetalk_pipeline.plan import SAMPLE_RATE

FloatT = TypeVar("FloatT", bound=np.floating)

_HOP = SAMPLE_RATE // 100  # 10 ms
_CONTEXT_S = 5.0  # guess: long enough to hold both a pause and a word, wherever it is placed
_HOLD_S = 0.12  # guess: mouths open about 100 ms before the sound, and gaps in words are shorter
_FADE_S = 0.08  # guess: two to three frames, so that nothing jumps
_QUIETEST_DBFS = -55.0  # guess: a voice below this is inaudible
_BELOW_PEAK_DB = 35.0  # guess: the range of speech from vowel to soft consonant
_ABOVE_FLOOR_DB = 8.0  # guess: a voice stands out of steady noise by this much
_NEAR_PEAK_DB = 12.0  # guess: sound this near the loudest is a voice, however steady it is
# So many parts of the sound stand for all of it. To read them, with the sound around each, takes
# 0.07 s (measured on one core of an AMD EPYC, 2026-11-26).
_PARTS, _PART_S = 32, 2.0
_GOLDEN = 0.618034  # its multiples are spread evenly over each whole number, and never in step


def frame_loudness(pcm_path: Path, fps: Fraction, start: int, end: int) -> NDArray[np.float32]:
    """Return (end - start,) weights of output frames: 1 where somebody speaks, 0 in silence.

    `pcm_path`: 16 kHz mono float32 little-endian samples. Reads at most the frames' own sound and
    5 s on each side.
    """
    context_frames = int(_CONTEXT_S * fps) + 1
    hop_times, levels = _levels(
        pcm_path,
        first_s=float((start - context_frames) / fps),
        last_s=float((end + context_frames) / fps),
    )
    speaking = _is_voice(levels).astype(np.float32)
    hold, fade = round(_HOLD_S * 100), round(_FADE_S * 100)
    held = _moving_max(speaking, hold)
    # The first and last hop are extended, because the sound is cut at its edges, not silent there.
    padded = np.pad(held, fade, mode="edge")
    weights = np.convolve(padded, np.full(2 * fade + 1, 1 / (2 * fade + 1)), mode="valid")
    middles_s = (np.arange(start, end) + 0.5) * float(1 / fps)
    at_frames = np.interp(middles_s, hop_times, weights, left=0.0, right=0.0)
    return np.asarray(at_frames.clip(0, 1), np.float32)


def count_spoken(pcm_path: Path, fps: Fraction, frames: Sequence[range]) -> int:
    """Return at how many of these output frames somebody speaks, which is their weight above 0.

    `pcm_path`: see `frame_loudness`. Of much sound, parts are read that are spread over it, and the
    result is what they say about all of it.
    """
    size = max(1, round(_PART_S * fps))
    parts = [
        range(start, min(start + size, span.stop))
        for span in frames
        for start in range(span.start, span.stop, size)
    ]
    if len(parts) > _PARTS:
        # One from each equal share, at another place in each, so that no rhythm is in step with it.
        share = len(parts) / _PARTS
        parts = [parts[int((k + k * _GOLDEN % 1.0) * share)] for k in range(_PARTS)]
    n_read = sum(map(len, parts))
    if not n_read:
        return 0
    loudness = (frame_loudness(pcm_path, fps, part.start, part.stop) for part in parts)
    spoken = sum(int(np.count_nonzero(weights)) for weights in loudness)
    return round(spoken * sum(map(len, frames)) / n_read)


def _levels(
    pcm_path: Path, *, first_s: float, last_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middles in seconds and the levels in dBFS of the 10 ms hops in a span of time."""
    first = max(0, int(first_s * 100)) * _HOP
    count = max(0, int(last_s * 100) * _HOP - first)
    samples = np.fromfile(pcm_path, dtype="<f4", count=count, offset=first * 4)
    hops = samples[: len(samples) // _HOP * _HOP].reshape(-1, _HOP).astype(np.float64)
    if not len(hops):
        return np.zeros(1), np.full(1, -np.inf)
    power = (hops - hops.mean(axis=1, keepdims=True)) ** 2  # without hum below 100 Hz and offset
    levels = 10 * np.log10(power.mean(axis=1) + 1e-12)
    times = (first + (np.arange(len(hops)) + 0.5) * _HOP) / SAMPLE_RATE
    return times, levels


def _is_voice(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which hops are voice, each compared with the loudest and quietest sound around it."""
    reach = round(_CONTEXT_S * 100)
    peak = _moving_max(levels, reach)
    floor = -_moving_max(-levels, reach)
    out_of_noise = np.minimum(floor + _ABOVE_FLOOR_DB, peak - _NEAR_PEAK_DB)
    threshold = np.maximum.reduce(
        [np.full_like(levels, _QUIETEST_DBFS), peak - _BELOW_PEAK_DB, out_of_noise]
    )
    return np.asarray(levels > threshold)


def _moving_max(values: NDArray[FloatT], reach: int) -> NDArray[FloatT]:
    """Return the maximum over `reach` neighbours on each side."""
    return np.asarray(maximum_filter1d(values, 2 * reach + 1, mode="nearest"))
