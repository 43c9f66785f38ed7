"""Where the mouth of a source frame is, measured from its landmarks, and the colours of its face.

Everything is in *face coordinates*, which the jaw cannot move: origin under the nose (point 33), u
along the line of the eyes, v down from it, both in nose lengths (points 27 to 33, about 5 cm).
Vertical places along u are kept in small tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face
from musetalk_pipeline.pixels.crops import FACE_SIDE

Float = NDArray[np.float32]

TABLE = 256  # entries of a table along u


@dataclass(frozen=True, slots=True)
class MouthMap:
    """Where the mouth of one source frame is. Tables: (TABLE,) float32, v along u."""

    to_crop: Float  # (2, 3): face coordinates (u, v, 1) to crop pixels
    u_low: float
    u_high: float
    corners: tuple[float, float]  # u of the inner corners
    radii: tuple[float, float, float]  # of the moving region: to the side, up, down
    centre: tuple[float, float]  # of the mouth
    upper: Float  # inner edge of the upper lip
    lower: Float  # inner edge of the lower lip
    upper_rim: Float  # outer edge of the upper lip
    lower_rim: Float
    chin: Float
    bottom: Float  # where nothing moves any more, below the chin

    @property
    def half_width(self) -> float:
        """From the middle of the mouth to a corner."""
        return (self.corners[1] - self.corners[0]) / 2


def map_mouth(face: Face) -> MouthMap:
    """Measure the mouth of one source frame. `face` is in pixels of its frame."""
    basis, origin = _face_axes(face)
    local = np.asarray((face.points - origin) @ np.linalg.inv(basis).T, np.float32)
    centre = float(local[[60, 64], 0].mean()), float(local[[60, 64], 1].mean())
    half = max(float(local[64, 0] - local[60, 0]) / 2, 0.05)
    side = min(1.9 * half + 0.08, 2.2 * half)
    grid = np.linspace(centre[0] - 1.25 * side, centre[0] + 1.25 * side, TABLE, dtype=np.float32)
    upper = _inner_edge(grid, local, (60, 61, 62, 63, 64))
    lower = _inner_edge(grid, local, (60, 67, 66, 65, 64))
    middle = (upper + lower) / 2
    chin = _table(grid, local, (4, 5, 6, 7, 8, 9, 10, 11, 12))
    box = face.box
    # The lower edge of what may change, in face coordinates, below each u.
    floor = (box.y1 - origin[1] - grid * basis[1, 0]) / basis[1, 1]
    bottom = np.maximum(np.minimum(chin + 0.22, floor), chin * 0.9)
    scale = np.array([FACE_SIDE / box.width, FACE_SIDE / box.height], np.float32)
    shift = (origin - (box.x0, box.y0)) * scale
    return MouthMap(
        to_crop=np.column_stack((basis * scale[:, None], shift)).astype(np.float32),
        u_low=float(grid[0]),
        u_high=float(grid[-1]),
        corners=(centre[0] - half, centre[0] + half),
        radii=(side, max(centre[1] - 0.05, 0.1), max(float(bottom.max()) - centre[1], 0.1)),
        centre=centre,
        upper=np.minimum(upper, middle),
        lower=np.maximum(lower, middle),
        upper_rim=_table(grid, local, (48, 49, 50, 51, 52, 53, 54)),
        lower_rim=_table(grid, local, (48, 59, 58, 57, 56, 55, 54)),
        chin=chin,
        bottom=bottom.astype(np.float32),
    )


def moving_region(mouth: MouthMap) -> Float:
    """Return the outline of all that drawing may change, (n, 2) float32 crop pixels."""
    side, up, down = mouth.radii
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    v = np.sin(angle)
    outline = np.column_stack(
        (mouth.centre[0] + side * np.cos(angle), mouth.centre[1] + np.where(v > 0, down, up) * v)
    )
    return np.asarray(outline @ mouth.to_crop[:, :2].T + mouth.to_crop[:, 2], np.float32)


def table_places(mouth: MouthMap, u: Float) -> NDArray[np.intp]:
    """Return where each u is in the tables."""
    at = ((u - mouth.u_low) * ((TABLE - 1) / (mouth.u_high - mouth.u_low)) + 0.5).astype(np.intp)
    return np.clip(at, 0, TABLE - 1)


def crop_grid(mouth: MouthMap, x0: int, y0: int, x1: int, y1: int) -> tuple[Float, Float]:
    """Return the face coordinates of the crop's pixels in [x0, x1) x [y0, y1)."""
    inverse = np.linalg.inv(mouth.to_crop[:, :2])
    x = np.arange(x0, x1, dtype=np.float32)[None, :] + 0.5 - mouth.to_crop[0, 2]
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - mouth.to_crop[1, 2]
    u, v = (inverse[row, 0] * x + inverse[row, 1] * y for row in (0, 1))
    return np.asarray(u, np.float32), np.asarray(v, np.float32)


def _face_axes(face: Face) -> tuple[Float, Float]:
    """Return the (2, 2) basis (columns u, v) and the origin, in frame pixels."""
    eyes = face.points[45] - face.points[36]
    apart = float(np.linalg.norm(eyes))
    # Points that do not form a face still get axes, because a wrong detection must not end a job.
    along = eyes / apart if apart > 1.0 else np.array([1.0, 0.0], np.float32)
    down = np.array([-along[1], along[0]], np.float32)
    length = max(float((face.points[33] - face.points[27]) @ down), 4.0)
    return np.column_stack((along, down)).astype(np.float32) * length, face.points[33]


def _table(grid: Float, local: Float, indices: tuple[int, ...]) -> Float:
    """Return v along `grid` through some of the points, rounded off at its kinks."""
    points = local[list(indices)]
    order = np.argsort(points[:, 0], kind="stable")
    line = np.interp(grid, points[order, 0], points[order, 1])
    width = TABLE // 20
    padded = np.pad(line, width, mode="edge")
    kernel = np.hanning(2 * width + 3)[1:-1]
    return np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float32)


def _inner_edge(grid: Float, local: Float, indices: tuple[int, ...]) -> Float:
    """Return v along an inner lip edge: the points on a stretched half ellipse, not on a polygon,
    which would cut the corners of an open mouth off.
    """
    points = local[list(indices)]
    across = across_mouth(grid, float(points[0, 0]), float(points[-1, 0]))
    places = across_mouth(points[1:-1, 0], float(points[0, 0]), float(points[-1, 0]))
    chord = np.interp(places, (-1.0, 1.0), points[[0, -1], 1])
    stretch = (points[1:-1, 1] - chord) / np.sqrt(np.maximum(1.0 - places**2, 0.2))
    order = np.argsort(places, kind="stable")
    bulge = np.interp(across, places[order], stretch[order]) * np.sqrt(1.0 - across**2)
    line = np.interp(across, (-1.0, 1.0), points[[0, -1], 1])
    return np.asarray(line + bulge, np.float32)


def across_mouth(u: Float, left: float, right: float) -> Float:
    """Return -1 at the left corner to 1 at the right one, no further."""
    width = max(right - left, 0.1)
    return np.asarray(np.clip((2 * u - left - right) / width, -1.0, 1.0), np.float32)


def smooth(x: Float | float) -> Float:
    """Return 0 below 0, 1 above 1, and a curve without kinks in between."""
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * (3.0 - 2.0 * x), np.float32)


def colours(crop: NDArray[np.uint8], mouth: MouthMap) -> tuple[Float, Float]:
    """Return the colours (BGR) of the skin next to the mouth and of the lower lip."""
    middle = TABLE // 2
    lip_v = (mouth.lower[middle] + mouth.lower_rim[middle]) / 2
    side = mouth.radii[0] * 0.8
    places = [
        (mouth.centre[0] - side, mouth.centre[1]),
        (mouth.centre[0] + side, mouth.centre[1]),
        (mouth.centre[0], float(lip_v)),
    ]
    left, right, lip = (_patch(crop, mouth, *place) for place in places)
    return np.maximum(left, right), lip


def _patch(crop: NDArray[np.uint8], mouth: MouthMap, u: float, v: float) -> Float:
    x, y = mouth.to_crop @ np.array([u, v, 1.0], np.float32)
    x, y = int(np.clip(x, 4, FACE_SIDE - 5)), int(np.clip(y, 4, FACE_SIDE - 5))
    return np.asarray(crop[y - 3 : y + 4, x - 4 : x + 5].mean(axis=(0, 1)), np.float32)
