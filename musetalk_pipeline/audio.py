"""Hears for the MuseTalk engine: Whisper features around every output frame.

The sound is heard in independent chunks of 30 s, as the reference does. A segment touches one or
two of them; the few used last are kept, so neither sound nor features are ever held whole.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Speech, SpeechAudio
from musetalk_pipeline.loudness import frame_loudness
from musetalk_pipeline.networks.files import WHISPER_FOLDER
from musetalk_pipeline.networks.whisper import (
    CHUNK_SAMPLES,
    CHUNK_STEPS,
    LAYERS,
    STEPS_PER_S,
    WIDTH,
    Ear,
    load_ear,
)
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment

_KEPT_CHUNKS = 3  # 11.5 MB each: two for a segment across a seam, one for a job beside it


class WhisperListener:
    """The Listener of the MuseTalk engine. Any number of threads may share one."""

    def __init__(self, models: Path, device: str = "cpu") -> None:
        """Load Whisper's encoder from the models folder.

        Raises:
            ModelLoadFailed: `whisper/` is missing, damaged or of another network.
        """
        self._ear: Ear = load_ear(models / WHISPER_FOLDER, device)
        self._chunks: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        # One thread hears at a time; another that wants the same chunk then finds it.
        self._lock = threading.Lock()

    def listen(
        self, audio: SpeechAudio, fps: Fraction, segment: Segment, options: SpeechOptions
    ) -> Speech:
        """Return (n, 50, 384) windows, time outer, layer inner, and the (n,) loudness."""
        started = time.monotonic()
        starts = window_starts(fps, segment.start, segment.end, options)
        length = window_length(options)
        steps = self._steps(audio, starts[0], starts[-1] + length)
        return Speech(
            features=cut_windows(steps, [first - starts[0] for first in starts], length),
            loudness=frame_loudness(audio.pcm_path, fps, segment.start, segment.end),
            seconds=time.monotonic() - started,
        )

    def _steps(self, audio: SpeechAudio, first: int, last: int) -> NDArray[np.float32]:
        """Return the (last - first, 5, 384) features of 20 ms steps; silence outside the sound."""
        heard = count_steps(audio.n_samples)
        steps = np.zeros((last - first, LAYERS, WIDTH), np.float32)
        start, end = max(first, 0), min(last, heard)
        while start < end:
            chunk = start // CHUNK_STEPS
            offset = chunk * CHUNK_STEPS
            stop = min(end, offset + CHUNK_STEPS)
            steps[start - first : stop - first] = self._chunk(audio, chunk)[
                start - offset : stop - offset
            ]
            start = stop
        return steps

    def _chunk(self, audio: SpeechAudio, chunk: int) -> NDArray[np.float32]:
        key = (audio.sha256, chunk)
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = self._ear.hear(_read_chunk(audio.pcm_path, chunk))
            self._chunks.move_to_end(key)
            while len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
            return self._chunks[key]


def window_length(options: SpeechOptions) -> int:
    """Return the steps of 20 ms in a window: 10 with the reference's paddings of 2 and 2."""
    return 2 * (options.audio_padding_left + options.audio_padding_right + 1)


def cut_windows(
    steps: NDArray[np.float32], starts: Sequence[int], length: int
) -> NDArray[np.float32]:
    """Return (n, length * 5, 384), time outer and layer inner, from (m, 5, 384) steps."""
    windows = np.stack([steps[first : first + length] for first in starts])
    return windows.reshape(len(starts), length * LAYERS, WIDTH)


def window_starts(fps: Fraction, start: int, end: int, options: SpeechOptions) -> list[int]:
    """Return the first step of each output frame's window; negative before the sound begins.

    A window begins a fixed time before its frame: 80 ms with the default padding, as the network
    was trained at 25 fps. The reference pads by whole video frames instead (Q39).
    """
    steps_per_frame = STEPS_PER_S / fps
    unit = 2 if options.window_placement == "fixed" else math.ceil(steps_per_frame)
    lead = unit * options.audio_padding_left
    return [math.floor(frame * steps_per_frame) - lead for frame in range(start, end)]


def count_steps(n_samples: int) -> int:
    """Return the 20 ms steps of sound, counted in double precision as the reference does."""
    return math.floor(n_samples / SAMPLE_RATE * STEPS_PER_S)


def _read_chunk(pcm_path: Path, chunk: int) -> NDArray[np.float32]:
    return np.fromfile(
        pcm_path, dtype="<f4", count=CHUNK_SAMPLES, offset=chunk * CHUNK_SAMPLES * 4
    ).astype(np.float32, copy=False)
