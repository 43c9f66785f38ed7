"""Where a video may cut: frames that differ from the one before over an area as large as a face.

It is meant to report too much rather than too little, because a report costs one search for faces,
and what has changed is decided by the faces.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 48, 48  # of the thumbnail
FINE_PX = 240  # of the shorter side, from which the thumbnail is made
CELLS = 6  # a side, in each of which the picture is compared
# Guess: mean difference, in levels of 255, of the cell that has changed most. A head that turns
# quickly gives 10, a cut between similar pictures 25 and more.
CHANGED = 14.0


class CutFinder:
    """Compares each frame with the one before."""

    def __init__(self) -> None:
        self._last: NDArray[np.float32] | None = None

    def is_cut(self, frame: NDArray[np.uint8]) -> bool:
        """Return whether a new shot may begin with this frame, (H * 3 / 2, W) uint8 I420."""
        luma = frame[: frame.shape[0] * 2 // 3]
        # Every so many pixels of a large frame are enough for the mean of a cell.
        apart = max(1, min(luma.shape) // FINE_PX)
        luma = np.ascontiguousarray(luma[::apart, ::apart])
        thumbnail = cv2.resize(luma, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        now = thumbnail.astype(np.float32)
        last, self._last = self._last, now
        if last is None:
            return False
        changes = cv2.resize(np.abs(now - last), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        return bool(changes.max() > CHANGED)
