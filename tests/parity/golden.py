"""A golden set: what the reference computed, and the inputs that it computed it from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.audio import WhisperListener
from musetalk_pipeline.boxes import Box, crop_box, face_box, with_chin_margin
from musetalk_pipeline.options import MediaLimits, Version
from musetalk_pipeline.soundtrack import open_audio

Arrays = Mapping[str, NDArray[Any]]

CHIN_MARGIN = 10  # what the golden sets were made with (v15), the reference's default
BATCH = 8  # likewise
V1_CHEEKS = 80  # the default of the reference's class, which v1 runs with


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
        """Return the arrays of `name`.npz."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the set says of itself."""
        path = self.folder / "meta.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @cached_property
    def frames(self) -> list[NDArray[np.uint8]]:
        """The source frames, (H, W, 3) uint8 BGR, in the order of their numbers."""
        paths = sorted(self.frames_folder.glob("*.png"), key=lambda path: int(path.stem))
        return [np.asarray(cv2.imread(str(path)), np.uint8) for path in paths]

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """(n, 68, 2) x, y in pixels."""
        with np.load(self.landmarks_file, allow_pickle=False) as file:
            return np.asarray(file[file.files[0]], np.float32)

    def boxes(self, version: Version) -> list[Box]:
        """Return the face box of each frame, margin included."""
        shift = self.v1_shift if version == "v1" else 0
        boxes = [_expect(face_box(points, shift)) for points in self.landmarks]
        if version == "v1":
            return boxes
        return [
            with_chin_margin(box, frame.shape[0], CHIN_MARGIN)
            for box, frame in zip(boxes, self.frames, strict=True)
        ]

    @cached_property
    def v1_shift(self) -> int:
        """The `bbox_shift` of the v1 run: the one whose crop box the set's v1 arrays show."""
        shown = self.load("v1_parse")["crop_box"].tolist()
        for shift in numbers_in(self.load("coords"), r"bbox_shift_(-?\d+)"):
            box = crop_box(_expect(face_box(self.landmarks[0], shift)))
            if [box.x0, box.y0, box.x1, box.y1] == shown:
                return shift
        raise ValueError("no bbox_shift of coords.npz gives the crop box of v1_parse.npz")

    @cached_property
    def listener(self) -> WhisperListener:
        """The listener with the set's weights."""
        return WhisperListener(self.models)

    def open_audio(self, path: Path) -> SpeechAudio:
        """Return a wav as the pipeline hears it: 16 kHz, mono."""
        return open_audio(path, self.scratch, MediaLimits())

    @cached_property
    def short_audio(self) -> SpeechAudio:
        """The speech of the generated frames."""
        return self.open_audio(self.folder / "short16k.wav")


def prompt_frames(count: int) -> list[int]:
    """Return which output frames the stored prompts belong to: both ends and the middle."""
    return [0, 1, 2, count // 2, count - 2, count - 1]


def numbers_in(arrays: Arrays, pattern: str) -> list[int]:
    """Return the numbers that the keys of a file carry, such as 25 in `idx_25`."""
    found = (re.fullmatch(pattern, key) for key in arrays)
    return [int(match[1]) for match in found if match]


def samples_of(audio: SpeechAudio) -> NDArray[np.float32]:
    """Return the whole of a short sound."""
    return np.fromfile(audio.pcm_path, "<f4")


def _expect(box: Box | None) -> Box:
    if box is None:
        raise ValueError("the landmarks of a golden set give a box for every frame")
    return box
