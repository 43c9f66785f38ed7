"""Rectangles in pixels, and the reference's geometry from landmarks to face box to crop box.

Pure arithmetic on integers, equal to the reference (docs/reference.md §1.2, §1.3, §1.9). Ranges
are half-open, x grows to the right, y grows downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CROP_EXPAND = 1.5  # reference: blending.py, `expand=1.5`
NOSE = 29  # the middle of the nose bridge in the iBUG 68-point order: half-way down the face box


@dataclass(frozen=True, slots=True)
class Box:
    """`[x0, x1) x [y0, y1)` in pixels; may reach outside its frame until it is clipped."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def is_empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def middle(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def is_around_middle_of(self, other: Box) -> bool:
        """Return whether the middle of either lies in the other, as for two boxes of one face."""
        return self._holds(other.middle) or other._holds(self.middle)

    def _holds(self, point: tuple[float, float]) -> bool:
        return self.x0 <= point[0] < self.x1 and self.y0 <= point[1] < self.y1

    def clipped(self, width_px: int, height_px: int) -> Box:
        """Return the part inside a frame of that size; may be empty."""
        return Box(
            max(0, self.x0), max(0, self.y0), min(width_px, self.x1), min(height_px, self.y1)
        )


def face_box(points: NDArray[np.float32], bbox_shift: int = 0) -> Box | None:
    """Return the face box of `points: (68, 2) x, y in pixels, iBUG order`; None if it is
    degenerate.

    Point 29 (plus `bbox_shift`) lies half-way down the box, which is where the VAE's mask edge
    falls. Points are truncated to integers first, as the reference does. The shift is written into
    point 29 itself before the extremes are taken (reference: preprocessing.py:112-120).
    """
    whole = points.astype(np.int32)
    if bbox_shift:
        whole[NOSE, 1] += bbox_shift
    nose_y = int(whole[NOSE, 1])
    x0, x1 = int(whole[:, 0].min()), int(whole[:, 0].max())
    bottom = int(whole[:, 1].max())
    top = max(0, nose_y - (bottom - nose_y))
    box = Box(x0, top, x1, bottom)
    return None if box.is_empty or x0 < 0 else box


def with_chin_margin(box: Box, frame_height: int, margin_px: int) -> Box:
    """Lower a face box past the chin, never past the frame (v1.5; reference `--extra_margin`)."""
    return replace(box, y1=min(box.y1 + margin_px, frame_height))


def crop_box(face: Box) -> Box:
    """Return the square around `face` that is parsed and blended; it may leave the frame.

    Integer division for the centre and `int(max(w, h) // 2 * 1.5)` for the half side, as in the
    reference's `get_crop_box`.
    """
    x_centre, y_centre = (face.x0 + face.x1) // 2, (face.y0 + face.y1) // 2
    half = int(max(face.width, face.height) // 2 * CROP_EXPAND)
    return Box(x_centre - half, y_centre - half, x_centre + half, y_centre + half)
