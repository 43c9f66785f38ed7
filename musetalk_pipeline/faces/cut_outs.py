"""Square parts of a frame for the face networks: turned cut-outs, and overlapping tiles."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

EYES = (33, 263)  # mesh indices of the outer eye corners: the line that a cut-out is turned by
ROI_SCALE = 1.5  # how much larger than the face its cut-out is (RectTransformationCalculator)
SETTLED = 0.04  # of the cut-out's side; one that moved and grew less than this is well centred
TILE_LEVELS = (1, 2)  # tile side = short side of the frame / level
MAX_TILES = 32  # over all levels of one frame: bounds the work on a very wide frame without a face


@dataclass(frozen=True, slots=True)
class Roi:
    """A square in frame pixels, turned by `angle` (radians, clockwise on screen)."""

    centre: Float
    side: float
    angle: float

    def to_frame(self, points: Float) -> Float:
        """Map (n, 2) points of the unit square, origin in its corner, to frame pixels."""
        return np.asarray(self.centre + ((points - 0.5) * self.side) @ self._turn().T, np.float32)

    def is_near(self, other: Roi) -> bool:
        """Return whether two cut-outs show the face at the same place and size."""
        moved = float(np.linalg.norm(self.centre - other.centre))
        return max(moved, abs(self.side - other.side)) < SETTLED * other.side

    def _turn(self) -> Float:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]], np.float32)


def tile_levels(width: int, height: int) -> list[list[tuple[int, int, int]]]:
    """Return overlapping square tiles (x, y, side), level by level, at most MAX_TILES in all.

    Neighbours overlap by at least a half, so that a face up to half a tile wide is whole in one.
    """
    levels: list[list[tuple[int, int, int]]] = []
    left = MAX_TILES
    for level in TILE_LEVELS:
        side = min(width, height) // level
        if side < 64 or left == 0:  # a face in less than 64 px has too few pixels to draw on
            break
        columns, rows = _starts(width, side), _starts(height, side)
        tiles = [(x, y, side) for y in rows for x in columns]
        # The middle first, in case not all of them fit. Sorting is stable, so the order is fixed.
        tiles.sort(
            key=lambda t: abs(t[0] + side / 2 - width / 2) + abs(t[1] + side / 2 - height / 2)
        )
        levels.append(tiles[:left])
        left -= len(levels[-1])
    return levels


def _starts(length: int, side: int) -> list[int]:
    count = -(-(length - side) * 2 // side) + 1
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


def roi_of_mesh(mesh: Float) -> Roi:
    """Return the upright square around a (468, 2) mesh, measured along its own axes."""
    angle = angle_of(mesh[EYES[0]], mesh[EYES[1]])
    turn = Roi(np.zeros(2, np.float32), 1.0, angle)._turn()
    upright = mesh @ turn  # the transpose of turning back, so rows become upright coordinates
    low, high = upright.min(axis=0), upright.max(axis=0)
    return Roi(turn @ ((low + high) / 2), float((high - low).max()) * ROI_SCALE, angle)


def angle_of(left: Float, right: Float) -> float:
    """Return the angle of the line between two (x, y) points, in radians, clockwise on screen."""
    dx, dy = right - left
    return float(np.arctan2(dy, dx))


def cut_square(frame: NDArray[np.uint8], x: int, y: int, side: int, size: int) -> Float:
    """Return a square of the frame as (size, size, 3) float32 RGB in 0..1, black outside.

    The part inside the frame is averaged down rather than sampled, because sampling every tenth
    pixel of a large frame makes boxes jump with the noise.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    scale = size / side
    left, top = round((x0 - x) * scale), round((y0 - y) * scale)
    right, bottom = round((x1 - x) * scale), round((y1 - y) * scale)
    square = np.zeros((size, size, 3), np.uint8)
    # A very wide frame may cover less than one row of the network's input; it still gets one.
    inner = (max(1, right - left), max(1, bottom - top))
    part = cv2.resize(frame[y0:y1, x0:x1], inner, interpolation=cv2.INTER_AREA)
    square[top : top + inner[1], left : left + inner[0]] = part[: size - top, : size - left]
    return _to_rgb(square)


def cut_turned(frame: NDArray[np.uint8], roi: Roi, size: int) -> Float:
    """Return a turned square as (size, size, 3) float32 RGB in 0..1, edges repeated outside.

    Sampled at a whole multiple of `size` and averaged down, for the same reason as above.
    """
    fold = int(np.clip(round(roi.side / size), 1, 6))
    corners = roi.to_frame(np.array([[0, 0], [1, 0], [0, 1]], np.float32))
    to_frame = np.column_stack(
        ((corners[1] - corners[0]) / (size * fold), (corners[2] - corners[0]) / (size * fold))
    )
    # Pixel centres: the middle of pixel 0 is at 0.5 of both pictures.
    offset = corners[0] + to_frame @ np.array([0.5, 0.5], np.float32) - 0.5
    picture = cv2.warpAffine(
        frame,
        np.column_stack((to_frame, offset)).astype(np.float64),
        (size * fold, size * fold),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if fold > 1:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return _to_rgb(np.asarray(picture, np.uint8))


def _to_rgb(bgr: NDArray[np.uint8]) -> Float:
    return np.ascontiguousarray(bgr[..., ::-1], np.float32) / np.float32(255.0)
