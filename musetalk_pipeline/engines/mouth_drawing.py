"""Drawing a mouth of any shape into a face crop, by warping what is there and painting its inside.

Everything is computed in *face coordinates*, which the jaw cannot move: origin under the nose
(point 33), u along the line of the eyes, v down from it, both in nose lengths (points 27 to 33,
about 5 cm). Vertical places along u are kept in small tables.

1. The source's own opening is taken away: the lips' inner edges are the ends of the warp, so
   whatever lies between them is never sampled.
2. The lips go to the wanted opening, the chin follows, corners move in or out.
3. The opening is filled with a dark cavity, a tongue and a row of teeth, in colours that come from
   the face's own light.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face
from musetalk_pipeline.crops import FACE_SIDE

Float = NDArray[np.float32]

# Shares of a nose length, by eye on three clips, unless another source is given.
MAX_OPENING = 0.40  # about 2 cm, as wide as speech opens a mouth
UPPER_SHARE = 0.16  # of an opening is made by the upper lip; the skull holds it
REST_SHARE = 0.20  # of the source's own opening, down from the upper lip, is where closed lips meet
SAG, ARCH = 0.15, 0.05  # how far closed lips may lie below (a smile) or above their corners
LIP_EDGE = 0.02  # the rim of the lips that is not sampled: the detector's error, seam and teeth
CORNER_EDGE = 0.22  # the same beside the corners, of the source's opening
CHIN_FOLLOWS = 0.45  # of the jaw's drop that the chin's contour makes; the rest folds the chin
ROUND_CORNERS = 0.34  # how far rounding pulls the corners in
WIDE_CORNERS = 0.14  # how far spreading pushes them out
UPPER_TEETH = 0.075  # how far the upper teeth reach below the closed lips
TABLE = 256  # entries of a table along u


@dataclass(frozen=True, slots=True)
class MouthShape:
    """A mouth, absolute: each in 0..1. `opening` 0 is closed lips; `teeth` brings the rows
    together.
    """

    opening: float
    wide: float
    rounded: float
    teeth: float


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


def draw_mouth(crop: NDArray[np.uint8], mouth: MouthMap, shape: MouthShape) -> NDArray[np.uint8]:
    """Return `crop: (256, 256, 3) uint8 BGR` with its mouth brought to `shape`."""
    outline = moving_region(mouth)
    x0, y0 = np.clip(np.floor(outline.min(axis=0)), 0, FACE_SIDE - 1).astype(int)
    x1, y1 = np.clip(np.ceil(outline.max(axis=0)) + 1, 1, FACE_SIDE).astype(int)
    u_out, v_out = _grid(mouth, x0, y0, x1, y1)
    u = _pull_corners(mouth, u_out, v_out, shape)
    at = ((u - mouth.u_low) * ((TABLE - 1) / (mouth.u_high - mouth.u_low)) + 0.5).astype(np.intp)
    at = np.clip(at, 0, TABLE - 1)
    lips = _Lips(mouth, shape)
    top, low = lips.top[at], lips.low[at]
    v = np.where(v_out < (top + low) / 2, _above(lips, at, v_out), _below(lips, at, v_out))
    to_crop = mouth.to_crop
    map_x = to_crop[0, 0] * u + to_crop[0, 1] * v + (to_crop[0, 2] - 0.5)
    map_y = to_crop[1, 0] * u + to_crop[1, 1] * v + (to_crop[1, 2] - 0.5)
    warped = cv2.remap(crop, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    out = crop.copy()
    out[y0:y1, x0:x1] = _paint(warped, crop, mouth, lips, shape, u, v_out, top, low)
    return out


class _Lips:
    """Tables along u of where the lips are and where they go."""

    def __init__(self, mouth: MouthMap, shape: MouthShape) -> None:
        self.mouth = mouth
        grid = np.linspace(mouth.u_low, mouth.u_high, TABLE, dtype=np.float32)
        self.across = _across(grid, *mouth.corners)
        self.profile = (1.0 - self.across**2) ** 0.8
        gap = mouth.lower - mouth.upper
        # Closed lips run nearly straight from corner to corner, however far the source's are open.
        chord = np.interp(self.across, (-1.0, 1.0), (mouth.upper[0], mouth.upper[-1]))
        bow = mouth.upper + REST_SHARE * gap - chord
        self.rest = chord + np.where(
            bow > 0, SAG * np.tanh(bow / SAG), ARCH * np.tanh(bow / ARCH)
        ).astype(np.float32)
        room = float((mouth.bottom - self.rest)[TABLE // 2])
        self.height = shape.opening * min(MAX_OPENING, 0.42 * room)
        opening = self.height * self.profile
        self.top = self.rest - UPPER_SHARE * opening
        self.low = self.rest + (1 - UPPER_SHARE) * opening
        # An open mouth's corners are steep: what is dark there reaches past the measured edge.
        past = np.abs(2 * grid - sum(mouth.corners)) / (mouth.corners[1] - mouth.corners[0])
        steep = _smooth((past - 0.5) / 0.4) * _smooth((1.5 - past) / 0.4)
        rim = (LIP_EDGE + 0.1 * gap) * np.sqrt(self.profile) + CORNER_EDGE * gap.max() * steep
        self.lift = (
            mouth.upper - 0.6 * rim - self.top
        )  # what leads from an output place to its source
        self.drop = mouth.lower + rim - self.low
        self.rim_top = np.minimum(mouth.upper_rim - self.lift, self.top - 0.01)
        self.rim_low = np.maximum(mouth.lower_rim - self.drop, self.low + 0.01)
        margin = np.maximum(mouth.bottom - mouth.chin, 0.0)
        wanted = -CHIN_FOLLOWS * self.drop
        self.chin_drop = np.clip(wanted, -1.5 * margin, 0.6 * margin)
        self.chin = mouth.chin + self.chin_drop


def _above(lips: _Lips, at: NDArray[np.intp], v: Float) -> Float:
    """Return the source v of output places above the mouth."""
    start = lips.mouth.centre[1] - lips.mouth.radii[1]
    rim = lips.rim_top[at]
    fade = _smooth((v - start) / np.maximum(rim - start, 0.02))
    source = np.minimum(v + lips.lift[at] * fade, (lips.top + lips.lift)[at])
    return np.asarray(source, np.float32)


def _below(lips: _Lips, at: NDArray[np.intp], v: Float) -> Float:
    """Return the source v of output places below the mouth."""
    rim, chin, bottom = lips.rim_low[at], lips.chin[at], lips.mouth.bottom[at]
    to_chin = np.clip((v - rim) / np.maximum(chin - rim, 0.02), 0.0, 1.0)
    past_chin = np.clip((v - chin) / np.maximum(bottom - chin, 0.02), 0.0, 1.0)
    drop, end = lips.drop[at], -lips.chin_drop[at]
    moved = (drop + (end - drop) * to_chin) * (1.0 - past_chin)
    return np.asarray(np.maximum(v + moved, (lips.low + lips.drop)[at]), np.float32)


def _paint(
    warped: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    mouth: MouthMap,
    lips: _Lips,
    shape: MouthShape,
    u: Float,
    v: Float,
    top: Float,
    low: Float,
) -> NDArray[np.uint8]:
    """Fill the opening between `top` and `low`."""
    per_v = float(np.hypot(mouth.to_crop[0, 1], mouth.to_crop[1, 1]))  # crop pixels a nose length
    skin, lip = _colours(crop, mouth)
    left, right = mouth.corners
    across = (2 * u - left - right) / (right - left)
    inside = np.clip(1.15 - np.abs(across), 0.0, 0.15) / 0.15
    from_top, from_low = (v - top) * per_v, (low - v) * per_v
    alpha = np.clip(from_top * 0.5 + 0.5, 0, 1) * np.clip(from_low * 0.5 + 0.5, 0, 1) * inside
    near = np.maximum(-np.minimum(from_top, from_low), 0.0) / (0.035 * per_v)
    shade = 1.0 - 0.30 * np.exp(-(near**2)) * inside
    cavity = _cavity(lips, shape, skin, lip, across, v, top, low, per_v)
    picture = warped.astype(np.float32) * shade[..., None]
    picture += (cavity - picture) * alpha[..., None]
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)


def _cavity(
    lips: _Lips,
    shape: MouthShape,
    skin: Float,
    lip: Float,
    across: Float,
    v: Float,
    top: Float,
    low: Float,
    per_v: float,
) -> Float:
    """Return the picture of the inside of the mouth, (h, w, 3) float32 BGR."""
    depth = np.clip((v - top) / np.maximum(low - top, 1e-3), 0.0, 1.0)
    dark = lip * np.array([0.11, 0.11, 0.20], np.float32)
    tongue = lip * np.array([0.40, 0.40, 0.58], np.float32)
    at_tongue = _smooth((depth - 0.55) / 0.45) * (1.0 - np.minimum(across**2 / 0.5, 1.0)) * 0.8
    picture = dark + (tongue - dark) * at_tongue[..., None]
    # Teeth hang from the skull: their edge stays where it is while the jaw drops.
    rest = float(lips.rest[TABLE // 2])
    edge = rest + UPPER_TEETH * (1.0 - 0.5 * across**2) - UPPER_SHARE * lips.height * 0.5
    edge = edge + shape.teeth * 0.1
    enamel = 1.08 * (0.5 * skin + 0.5 * skin.mean())
    # Light fades towards the cheeks, under the upper lip, and in the gaps between the teeth.
    lit = 1.0 - 0.5 * np.minimum(across**2 / 0.8, 1.0)
    lit *= 0.7 + 0.3 * _smooth((v - top) / 0.07)
    lit *= 1.0 - 0.07 * _smooth((np.cos(across * (8 * np.pi)) - 0.7) / 0.3)
    teeth = np.clip((edge - v) * per_v * 0.5 + 0.5, 0, 1)
    teeth *= np.clip((0.9 - np.abs(across)) / 0.3, 0, 1)
    teeth *= _smooth((low - top) * per_v / 2.5)  # the line between closed lips is dark
    return np.asarray(picture + (enamel * lit[..., None] - picture) * teeth[..., None], np.float32)


def _colours(crop: NDArray[np.uint8], mouth: MouthMap) -> tuple[Float, Float]:
    """Return the colours (BGR) of the skin beside the mouth and of the lower lip."""
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


def _pull_corners(mouth: MouthMap, u: Float, v: Float, shape: MouthShape) -> Float:
    """Return the source u of each output place: corners come in when rounded, go out when wide."""
    side, up, down = mouth.radii
    across, along = (u - mouth.centre[0]) / side, v - mouth.centre[1]
    along = np.where(along > 0, along / down, along / up)
    weight = np.maximum(1.0 - across**2 - along**2, 0.0) ** 2
    pull = ROUND_CORNERS * shape.rounded - WIDE_CORNERS * shape.wide
    return np.asarray(u + (u - mouth.centre[0]) * (pull * weight), np.float32)


def _grid(mouth: MouthMap, x0: int, y0: int, x1: int, y1: int) -> tuple[Float, Float]:
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
    # Points that are no face still get axes: a detector's mistake must not end a job.
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
    across = _across(grid, float(points[0, 0]), float(points[-1, 0]))
    places = _across(points[1:-1, 0], float(points[0, 0]), float(points[-1, 0]))
    chord = np.interp(places, (-1.0, 1.0), points[[0, -1], 1])
    stretch = (points[1:-1, 1] - chord) / np.sqrt(np.maximum(1.0 - places**2, 0.2))
    order = np.argsort(places, kind="stable")
    bulge = np.interp(across, places[order], stretch[order]) * np.sqrt(1.0 - across**2)
    line = np.interp(across, (-1.0, 1.0), points[[0, -1], 1])
    return np.asarray(line + bulge, np.float32)


def _across(u: Float, left: float, right: float) -> Float:
    """Return -1 at the left corner to 1 at the right one, no further."""
    width = max(right - left, 0.1)
    return np.asarray(np.clip((2 * u - left - right) / width, -1.0, 1.0), np.float32)


def _smooth(x: Float) -> Float:
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * (3.0 - 2.0 * x), np.float32)
