"""A golden set: what the reference computed, and the inputs that it computed it from.

Nothing is taken for granted that differs between sets: how many frames there are and how large,
the frame rate, how long the sounds are, which frames a stored array belongs to. Whatever a set
lacks, or says twice and differently, is an `IncompleteSet` with the reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.boxes import Box, crop_box, face_box, with_chin_margin
from musetalk_pipeline.engines.musetalk.audio_encoder import WhisperAudioEncoder
from musetalk_pipeline.media.speech_audio import open_audio
from musetalk_pipeline.options import MediaLimits, SpeechOptions, Version
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, count_output_frames

CHIN_MARGIN = 10  # what the golden sets were made with (v15), the reference's default
BATCH = 8  # likewise
V1_CHEEKS = 80  # the default of the reference's class, which v1 runs with
V1_SHIFT = 5  # the usual `bbox_shift` of the v1 run; another is found by the boxes that it gives
# 25 before all others. From 50 on the reference gives up (Q8).
RATES = tuple(Fraction(rate) for rate in (25, *range(1, 25), *range(26, 50)))
SPEECH = SpeechOptions(window_placement="reference")  # golden sets are the reference's


class IncompleteSet(Exception):
    """The set lacks something that a check needs, or contradicts itself."""


class Arrays(dict[str, NDArray[Any]]):
    """The arrays of one file. One that is not there is named together with its file."""

    def __init__(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(arrays)
        self.name = name

    def __missing__(self, key: str) -> NDArray[Any]:
        raise IncompleteSet(f"{self.name}.npz lacks {key}")


@dataclass(frozen=True)
class GoldenSet:
    """Folders and files as given on the command line; everything else is read from them."""

    folder: Path
    models: Path
    frames_folder: Path
    landmarks_file: Path
    wav: Path
    scratch: Path

    def has(self, name: str) -> bool:
        """Whether the set has `name`.npz."""
        return (self.folder / f"{name}.npz").is_file()

    def load(self, name: str) -> Arrays:
        """Return the arrays of `name`.npz.

        Raises:
            IncompleteSet: there is no such file.
        """
        if not self.has(name):
            raise IncompleteSet(f"{name}.npz is not in the set")
        return Arrays(name, _read_arrays(self.folder / f"{name}.npz"))

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the set says of itself, empty without a meta.json."""
        path = self.folder / "meta.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @cached_property
    def frames(self) -> list[NDArray[np.uint8]]:
        """The source frames, (H, W, 3) uint8 BGR, in the order of their numbers."""
        paths = sorted(self.frames_folder.glob("*.png"), key=lambda path: int(path.stem))
        if len(paths) != len(self.landmarks):
            raise IncompleteSet(
                f"{len(paths)} frames (*.png), but landmarks of {len(self.landmarks)}"
            )
        return [_read_frame(path) for path in paths]

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """(n, 68, 2) x, y in pixels."""
        arrays = _read_arrays(self.landmarks_file)
        key = "landmarks" if "landmarks" in arrays else next(iter(arrays))
        return np.asarray(arrays[key], np.float32)

    def boxes(self, version: Version) -> list[Box]:
        """Return the face box of each frame, margin included."""
        shift = self.v1_shift if version == "v1" else 0
        boxes = [self._face_box(frame, shift) for frame in range(len(self.landmarks))]
        if version == "v1":
            return boxes
        return [
            with_chin_margin(box, frame.shape[0], CHIN_MARGIN)
            for box, frame in zip(boxes, self.frames, strict=True)
        ]

    @cached_property
    def v1_shift(self) -> int:
        """The `bbox_shift` of the v1 run: the one that gives most of the boxes that it shows.

        One frame is not enough: at the frame's upper edge several shifts give one box.
        """
        shown = {0: self.load("v1_parse")["crop_box"].tolist()}
        if self.has("v1_realtime"):
            realtime = self.load("v1_realtime")
            shown |= {n: realtime[f"box{n}"].tolist() for n in numbers_in(realtime, r"box(\d+)")}
        listed = numbers_in(self.load("coords"), r"bbox_shift_(-?\d+)")
        best, most = V1_SHIFT, 0
        for shift in (V1_SHIFT, *listed, *range(-64, 65)):
            fitting = sum(self._crop_corners(frame, shift) == box for frame, box in shown.items())
            if fitting > most:
                best, most = shift, fitting
        if not most:
            raise IncompleteSet("no bbox_shift from -64 to 64 gives the boxes that v1 shows")
        return best

    def _face_box(self, frame: int, shift: int) -> Box:
        box = face_box(self.landmarks[frame], shift)
        if box is None:
            raise IncompleteSet(f"the landmarks of frame {frame} give no box")
        return box

    def _crop_corners(self, frame: int, shift: int) -> list[int]:
        box = face_box(self.landmarks[frame], shift) if frame < len(self.landmarks) else None
        return [] if box is None else corners(crop_box(box))

    @cached_property
    def fps(self) -> Fraction:
        """The whole frame rate that the audio was cut with (the reference truncates rates, Q7).

        What meta.json says, else the one that gives the set's number of frames and, of several,
        the stored windows; 25 if none does.
        """
        if "fps" in self.meta:
            return Fraction(math.floor(float(self.meta["fps"])))
        arrays = self.load("audio_short")
        n_samples, count = int(arrays["nsamples"]), int(arrays["count"])
        rates = [rate for rate in RATES if count_output_frames(n_samples, rate) == count]
        if len(rates) < 2:
            return rates[0] if rates else RATES[0]
        return min(rates, key=lambda rate: self._distance(rate, count, arrays["prompts"]))

    def _distance(self, fps: Fraction, count: int, prompts: NDArray[np.float32]) -> float:
        windows = self.windows_of(self.short_audio, fps, range(count))
        return float(np.abs(windows[frames_of(prompts, windows)] - prompts).mean())

    def windows_of(
        self, audio: SpeechAudio, fps: Fraction, frames: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the (n, 50, 384) windows of single output frames from the audio encoder."""
        first = Segment(0, 0, 0, 0, 0, 1)
        single = [replace(first, start=frame, end=frame + 1) for frame in frames]
        return np.concatenate(
            [self.audio_encoder.encode(audio, fps, each, SPEECH).features for each in single]
        )

    @cached_property
    def windows(self) -> NDArray[np.float32]:
        """The windows of every output frame of the short sound."""
        count = count_output_frames(self.short_audio.n_samples, self.fps)
        return self.windows_of(self.short_audio, self.fps, range(count))

    @cached_property
    def audio_encoder(self) -> WhisperAudioEncoder:
        """The audio encoder with the set's weights."""
        return WhisperAudioEncoder(self.models)

    def open_audio(self, path: Path) -> SpeechAudio:
        """Return a wav as the pipeline reads it: 16 kHz, mono."""
        if not path.is_file():
            raise IncompleteSet(f"{path.name} is not in the set")
        return open_audio(path, self.scratch, MediaLimits())

    @cached_property
    def short_audio(self) -> SpeechAudio:
        """The speech of the generated frames."""
        return self.open_audio(self.folder / "short16k.wav")


def frames_of(stored: NDArray[Any], ours: NDArray[Any]) -> list[int]:
    """Return to which of `ours` each stored array belongs, as a set keeps a few of all frames.

    It is the one that is nearest on average. That all frames are late by one does not stay hidden:
    the next stage's golden arrays are of all frames.
    """
    wanted = stored.astype(np.float32)
    distances = np.stack(
        [np.abs(wanted - each).mean(axis=tuple(range(1, wanted.ndim))) for each in ours]
    )
    return [int(nearest) for nearest in distances.argmin(axis=0)]


def numbers_in(arrays: Mapping[str, ArrayLike], pattern: str) -> list[int]:
    """Return the numbers that the keys of a file carry, such as 25 in `idx_25`, ascending."""
    found = (re.fullmatch(pattern, key) for key in arrays)
    return sorted({int(match[1]) for match in found if match})


def named_frames(frames: Sequence[int]) -> str:
    """Return `frames 0 1 7`, for a remark."""
    return " ".join(["frames", *map(str, frames)])


def corners(box: Box) -> list[int]:
    """Return x0, y0, x1, y1."""
    return [box.x0, box.y0, box.x1, box.y1]


def samples_of(audio: SpeechAudio) -> NDArray[np.float32]:
    """Return the whole of a short sound."""
    return np.fromfile(audio.pcm_path, "<f4")


def librosa_length(n: int, rate: int) -> int:
    """Return how many samples librosa's resampling to 16 kHz makes of `n` (its `fix_length`)."""
    return math.ceil(n * (SAMPLE_RATE / rate))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    # NumPy leaves a damaged file open that it has opened itself.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _read_frame(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise IncompleteSet(f"{path.name} cannot be read as a picture")
    return np.asarray(picture, np.uint8)
