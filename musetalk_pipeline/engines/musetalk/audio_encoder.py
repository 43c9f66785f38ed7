"""The audio encoder of the MuseTalk engine: Whisper features around every output frame.

The sound is encoded in independent chunks of 30 s, as the reference does, or in chunks that
overlap. A segment touches one or two of them. The chunks used last are kept, enough for the jobs
that run at the same time, so neither sound nor features are ever held whole.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Speech, SpeechAudio
from musetalk_pipeline.networks.files import WHISPER_FOLDER
from musetalk_pipeline.networks.whisper import (
    CHUNK_SAMPLES,
    CHUNK_STEPS,
    LAYERS,
    STEPS_PER_S,
    WIDTH,
    load_whisper,
)
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, speech_fps
from musetalk_pipeline.sound.loudness import frame_loudness

STEP_SAMPLES = SAMPLE_RATE // STEPS_PER_S
Places = NDArray[np.intp]  # (n, length) numbers of 20 ms steps, one row for each window

# Of 11.5 MB each. Two for each job, whose segments lie on both sides of a seam, and one more.
_CHUNKS_A_JOB, _SPARE_CHUNKS = 2, 1
_KEPT_BYTES = 512 << 20  # 46 chunks: enough for 22 jobs


class SoundEncoder(Protocol):
    """Encodes one chunk of sound; see `networks.whisper.ChunkEncoder`."""

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (1500, 5, 384) features of one chunk of (≤ 480000,) samples."""
        ...


class WhisperAudioEncoder:
    """Encodes speech with Whisper. Any number of threads may share one instance."""

    def __init__(
        self,
        models: Path,
        device: str = "cpu",
        jobs: int = 1,
        *,
        load: Callable[[Path, str], SoundEncoder] = load_whisper,
    ) -> None:
        """Load Whisper's encoder from the models folder. `jobs`: how many run at the same time.

        Raises:
            ModelLoadFailed: `whisper/` is missing, damaged or of another network.
        """
        self._chunk_encoder = load(models / WHISPER_FOLDER, device)
        self._chunks: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        # Only one thread encodes, so that another that needs the same chunk then finds it.
        self._lock = threading.Lock()
        self._max_chunks = _CHUNKS_A_JOB * jobs + _SPARE_CHUNKS

    def encode(
        self, audio: SpeechAudio, fps: Fraction, segment: Segment, options: SpeechOptions
    ) -> Speech:
        """Return (n, 50, 384) windows, time outer, layer inner, and the (n,) loudness."""
        fps = speech_fps(fps, options.frame_rate)
        places = window_places(fps, segment.start, segment.end, options)
        first = int(places.min())
        overlap = round(options.chunk_overlap_s * STEPS_PER_S)
        steps = self._steps(audio, first, int(places.max()) + 1, overlap)
        return Speech(
            features=cut_windows(steps, places - first),
            loudness=frame_loudness(audio.pcm_path, fps, segment.start, segment.end),
        )

    def _steps(
        self, audio: SpeechAudio, first: int, last: int, overlap: int
    ) -> NDArray[np.float32]:
        """Return the (last - first, 5, 384) features of 20 ms steps; silence outside the sound."""
        n_steps = count_steps(audio.n_samples)
        steps = np.zeros((last - first, LAYERS, WIDTH), np.float32)
        start, end = max(first, 0), min(last, n_steps)
        while start < end:
            offset, chunk_end = chunk_at(start, n_steps, overlap)
            stop = min(end, chunk_end)
            steps[start - first : stop - first] = self._chunk(audio, offset)[
                start - offset : stop - offset
            ]
            start = stop
        return steps

    def _chunk(self, audio: SpeechAudio, offset: int) -> NDArray[np.float32]:
        """Return the features of the 30 s from step `offset` on."""
        key = (audio.key, offset)
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = self._chunk_encoder.encode(_read_chunk(audio.pcm_path, offset))
            self._chunks.move_to_end(key)
            chunk = self._chunks[key]
            most = min(self._max_chunks, max(1, _KEPT_BYTES // max(1, chunk.nbytes)))
            while len(self._chunks) > most:
                self._chunks.popitem(last=False)
            return chunk


def chunk_at(step: int, n_steps: int, overlap: int) -> tuple[int, int]:
    """Return where the chunk begins that `step` is taken from, and where its use ends, in steps.

    `n_steps`: steps of sound in all. Chunks share `overlap` steps with the next, and each provides
    its half of them. No chunk begins if another already reaches the end of the sound.
    """
    stride = CHUNK_STEPS - overlap
    last = max(0, math.ceil((n_steps - CHUNK_STEPS) / stride))
    chunk = min(max(0, (step - overlap // 2) // stride), last)
    end = n_steps if chunk == last else (chunk + 1) * stride + overlap // 2
    return chunk * stride, end


def window_length(options: SpeechOptions) -> int:
    """Return the steps of 20 ms in a window: 10 with the reference's paddings of 2 and 2."""
    return 2 * (options.audio_padding_left + options.audio_padding_right + 1)


def cut_windows(steps: NDArray[np.float32], places: Places) -> NDArray[np.float32]:
    """Return (n, length * 5, 384), time outer and layer inner, from (m, 5, 384) steps; `places`
    (n, length) has their indices.
    """
    count, length = places.shape
    return steps[places].reshape(count, length * LAYERS, WIDTH)


def window_places(fps: Fraction, start: int, end: int, options: SpeechOptions) -> Places:
    """Return the (end - start, length) steps of each output frame's window, by `window_span`."""
    if options.window_span == "frames":
        return _half_frame_steps(fps, start, end, options)
    starts = np.array(window_starts(fps, start, end, options))
    return starts[:, None] + np.arange(window_length(options))


def _half_frame_steps(fps: Fraction, start: int, end: int, options: SpeechOptions) -> Places:
    """Return for each half of a video frame in a window the step nearest to its middle.

    At 25 fps half a frame is one step, and these are the windows that the network was trained with.
    At other rates steps are left out or repeated, so that a window keeps its length.
    """
    lead = 2 * options.audio_padding_left
    halves = 2 * np.arange(start, end)[:, None] + np.arange(window_length(options)) - lead
    # floor((half + 1/2) * 25 / fps), in whole numbers
    return (2 * halves + 1) * (STEPS_PER_S * fps.denominator) // (4 * fps.numerator)


def window_starts(fps: Fraction, start: int, end: int, options: SpeechOptions) -> list[int]:
    """Return the first step of each window of a fixed time; negative before the sound begins.

    A window begins a fixed time before its frame: 80 ms with the default padding, as the network
    was trained at 25 fps. The reference pads by whole video frames instead (Q39).
    """
    unit = 2 if options.window_placement == "fixed" else math.ceil(STEPS_PER_S / fps)
    lead = unit * options.audio_padding_left
    return [_step_of(frame, fps) - lead for frame in range(start, end)]


def _step_of(frame: int, fps: Fraction) -> int:
    """Return the 20 ms step in which an output frame begins.

    At whole rates in double precision, as the reference has it: at 29 and 31 fps some products
    fall just short of a whole step, and the window is one step earlier than it should be. At other
    rates, which the reference cuts to whole ones, exact.
    """
    if fps.denominator == 1:
        return math.floor(frame * (STEPS_PER_S / int(fps)))
    return math.floor(frame * STEPS_PER_S / fps)


def count_steps(n_samples: int) -> int:
    """Return the 20 ms steps of sound, counted in double precision as the reference does."""
    return math.floor(n_samples / SAMPLE_RATE * STEPS_PER_S)


def _read_chunk(pcm_path: Path, offset: int) -> NDArray[np.float32]:
    return np.fromfile(
        pcm_path, dtype="<f4", count=CHUNK_SAMPLES, offset=offset * STEP_SAMPLES * 4
    ).astype(np.float32, copy=False)
