"""The interface of every landmark detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box


@dataclass(frozen=True, slots=True)
class Landmarks:
    """`points`: (68, 2) float32 x, y in pixels of the frame, iBUG order. `score`: 0 to 1.

    `box`: the face as found by another detector, only for frames whose points make no box.
    """

    points: NDArray[np.float32]
    score: float
    box: Box | None = None


class LandmarkDetector(Protocol):
    """Finds the 68 points of the most prominent face of each frame."""

    @property
    def name(self) -> str:
        """`mesh`, `onnx` or `mmpose`."""
        ...

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks | None]:
        """Return one entry per frame, None where there is no face. `frames`: (H, W, 3) uint8 BGR
        each.

        The result depends on each frame alone, without tracking, so any replica returns the same.
        """
        ...

    def refine(
        self, frames: Sequence[NDArray[np.uint8]], located: Sequence[Landmarks]
    ) -> list[Landmarks | None]:
        """Return the points of one face of each frame, which `mesh` has located; None where this
        detector finds none there. A frame may come several times.
        """
        ...
