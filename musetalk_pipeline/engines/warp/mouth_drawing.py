"""Drawing a mouth of any shape into a face crop, by warping what is there and painting its inside.

Everything is computed in the face coordinates of mouth_map.

1. The source's own opening is removed: the warp ends at the lips' inner edges, so whatever lies
   between them is never sampled.
2. The lips move to the requested opening, the chin follows, and the corners move in or out.
3. The opening is filled with the teeth that the source shows, in their place. If it shows none, it
   is filled with a dark cavity, a tongue and a row of teeth, in the colours of the face's light.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.engines.warp.mouth_map import (
    TABLE,
    Float,
    MouthMap,
    across_mouth,
    colours,
    crop_grid,
    moving_region,
    smooth,
    table_places,
)
from musetalk_pipeline.engines.warp.teeth import Teeth, seen_teeth
from musetalk_pipeline.pixels.crops import FACE_SIDE

# Shares of a nose length, by eye on three clips, unless another source is given.
MAX_OPENING = 0.40  # about 2 cm, as wide as speech opens a mouth
UPPER_SHARE = 0.16  # of an opening is made by the upper lip; the skull holds it
REST_SHARE = 0.20  # of the source's own opening, down from the upper lip, is where closed lips meet
SAG, ARCH = 0.15, 0.05  # how far closed lips may lie below (a smile) or above their corners
LIP_EDGE = 0.02  # the rim of the lips that is not sampled: the detector's error, seam and teeth
CORNER_EDGE = 0.22  # the same next to the corners, of the source's opening
CHIN_FOLLOWS = 0.45  # of the jaw's drop that the chin's contour makes; the rest folds the chin
ROUND_CORNERS = 0.34  # how far rounding pulls the corners in
WIDE_CORNERS = 0.14  # how far spreading pushes them out
UPPER_TEETH = 0.075  # how far the upper teeth reach below the closed lips


@dataclass(frozen=True, slots=True)
class MouthShape:
    """The shape of a mouth. Each value is absolute and in 0..1.

    `opening` 0 means closed lips; `teeth` brings the two rows together.
    """

    opening: float
    wide: float
    rounded: float
    teeth: float


def draw_mouth(crop: NDArray[np.uint8], mouth: MouthMap, shape: MouthShape) -> NDArray[np.uint8]:
    """Return `crop: (256, 256, 3) uint8 BGR` with its mouth brought to `shape`."""
    outline = moving_region(mouth)
    x0, y0 = np.clip(np.floor(outline.min(axis=0)), 0, FACE_SIDE - 1).astype(int)
    x1, y1 = np.clip(np.ceil(outline.max(axis=0)) + 1, 1, FACE_SIDE).astype(int)
    u_out, v_out = crop_grid(mouth, x0, y0, x1, y1)
    u = _pull_corners(mouth, u_out, v_out, shape)
    at = table_places(mouth, u)
    lips = Lips(mouth, shape)
    top, low = lips.top[at], lips.low[at]
    v = np.where(v_out < (top + low) / 2, _above(lips, at, v_out), _below(lips, at, v_out))
    to_crop = mouth.to_crop
    map_x = to_crop[0, 0] * u + to_crop[0, 1] * v + (to_crop[0, 2] - 0.5)
    map_y = to_crop[1, 0] * u + to_crop[1, 1] * v + (to_crop[1, 2] - 0.5)
    warped = cv2.remap(crop, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    out = crop.copy()
    seen = seen_teeth(crop, mouth, int(x0), int(y0), u_out, v_out)
    left, right = mouth.corners
    opening = _Opening((2 * u - left - right) / (right - left), v_out, top, low)
    out[y0:y1, x0:x1] = _paint(warped, crop, seen, lips, opening)
    return out


@dataclass(frozen=True, slots=True)
class _Opening:
    """Where each drawn pixel lies in the mouth. All (h, w) float32.

    `across`: -1 at the left corner to 1 at the right one, and beyond. `v`: of the pixel. `top`,
    `low`: v of the lips' inner edges at its u.
    """

    across: Float
    v: Float
    top: Float
    low: Float

    def rows(self, rows: slice) -> _Opening:
        """Return the same for some rows."""
        return _Opening(self.across[rows], self.v[rows], self.top[rows], self.low[rows])


class Lips:
    """Tables along u of where the lips are and where they go."""

    def __init__(self, mouth: MouthMap, shape: MouthShape) -> None:
        self.mouth, self.shape = mouth, shape
        grid = np.linspace(mouth.u_low, mouth.u_high, TABLE, dtype=np.float32)
        self.across = across_mouth(grid, *mouth.corners)
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
        # An open mouth has steep corners, and its dark inside reaches past the measured edge.
        # A nearly closed one has not; cutting there would tear the line between the lips apart.
        past = np.abs(2 * grid - sum(mouth.corners)) / (mouth.corners[1] - mouth.corners[0])
        openness = float(gap.max()) / mouth.half_width
        fall = 0.2 + 0.3 * openness  # gentle, because an abrupt change looks torn
        steep = smooth((past - 0.4) / 0.5) * smooth((1.0 + fall - past) / fall)
        is_open = smooth((openness - 0.15) / 0.25)
        edge = CORNER_EDGE * gap.max() * is_open
        rim = (LIP_EDGE + 0.1 * gap) * np.sqrt(self.profile) + edge * steep
        # Offsets from an output position to its source.
        self.lift = mouth.upper - 0.6 * rim - self.top
        self.drop = mouth.lower + rim - self.low
        self.rim_top = np.minimum(mouth.upper_rim - self.lift, self.top - 0.01)
        self.rim_low = np.maximum(mouth.lower_rim - self.drop, self.low + 0.01)
        margin = np.maximum(mouth.bottom - mouth.chin, 0.0)
        wanted = -CHIN_FOLLOWS * self.drop
        self.chin_drop = np.clip(wanted, -1.5 * margin, 0.6 * margin)
        self.chin = mouth.chin + self.chin_drop


def _above(lips: Lips, at: NDArray[np.intp], v: Float) -> Float:
    """Return the source v of output places above the mouth."""
    start = lips.mouth.centre[1] - lips.mouth.radii[1]
    rim = lips.rim_top[at]
    fade = smooth((v - start) / np.maximum(rim - start, 0.02))
    source = np.minimum(v + lips.lift[at] * fade, (lips.top + lips.lift)[at])
    return np.asarray(source, np.float32)


def _below(lips: Lips, at: NDArray[np.intp], v: Float) -> Float:
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
    seen: Teeth | None,
    lips: Lips,
    opening: _Opening,
) -> NDArray[np.uint8]:
    """Fill the opening."""
    skin, lip = colours(crop, lips.mouth)
    per_v = _pixels_per_v(lips.mouth)
    # Nothing is painted beyond the corners, where it would be a dark spike on the cheek.
    inside = np.clip(1.0 - np.abs(opening.across), 0.0, 0.08) / 0.08
    from_top, from_low = (opening.v - opening.top) * per_v, (opening.low - opening.v) * per_v
    alpha = np.clip(from_top * 0.5 + 0.5, 0, 1) * np.clip(from_low * 0.5 + 0.5, 0, 1) * inside
    near = np.maximum(-np.minimum(from_top, from_low), 0.0) / (0.035 * per_v)
    shade = 1.0 - 0.30 * np.exp(-(near**2)) * inside
    enamel = 1.08 * (0.5 * skin + 0.5 * skin.mean())
    if seen is not None:  # the colour of the source's own teeth, brighter if they are in shadow
        enamel = np.maximum(seen.enamel, (seen.enamel + enamel) / 2)
    picture = warped.astype(np.float32) * shade[..., None]
    painted = np.flatnonzero(alpha.any(axis=1))
    if len(painted):
        rows = slice(int(painted[0]), int(painted[-1]) + 1)
        cavity = _cavity(lips, enamel, lip, opening.rows(rows))
        if seen is not None:
            seen.put_into(cavity, rows.start)
        part = picture[rows]
        part += (cavity - part) * alpha[rows, :, None]
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)


def _pixels_per_v(mouth: MouthMap) -> float:
    """Return how many crop pixels a nose length has."""
    return float(np.hypot(mouth.to_crop[0, 1], mouth.to_crop[1, 1]))


def _cavity(lips: Lips, enamel: Float, lip: Float, opening: _Opening) -> Float:
    """Return the picture of the inside of the mouth, (h, w, 3) float32 BGR."""
    across, v, top, low = opening.across, opening.v, opening.top, opening.low
    per_v = _pixels_per_v(lips.mouth)
    depth = np.clip((v - top) / np.maximum(low - top, 1e-3), 0.0, 1.0)
    dark = lip * np.array([0.11, 0.11, 0.20], np.float32)
    tongue = lip * np.array([0.40, 0.40, 0.58], np.float32)
    at_tongue = smooth((depth - 0.55) / 0.45) * (1.0 - np.minimum(across**2 / 0.5, 1.0)) * 0.8
    picture = dark + (tongue - dark) * at_tongue[..., None]
    # The upper teeth belong to the skull, so their edge stays in place while the jaw drops.
    rest = float(lips.rest[TABLE // 2])
    edge = rest + UPPER_TEETH * (1.0 - 0.5 * across**2) - UPPER_SHARE * lips.height * 0.5
    edge = edge + lips.shape.teeth * 0.1
    # Light fades towards the cheeks, under the upper lip, and in the gaps between the teeth.
    lit = 1.0 - 0.5 * np.minimum(across**2 / 0.8, 1.0)
    lit *= 0.7 + 0.3 * smooth((v - top) / 0.07)
    lit *= 1.0 - 0.07 * smooth((np.cos(across * (8 * np.pi)) - 0.7) / 0.3)
    teeth = np.clip((edge - v) * per_v * 0.5 + 0.5, 0, 1)
    teeth *= np.clip((0.9 - np.abs(across)) / 0.3, 0, 1)
    teeth *= smooth((low - top) * per_v / 2.5)  # the line between closed lips is dark
    return np.asarray(picture + (enamel * lit[..., None] - picture) * teeth[..., None], np.float32)


def _pull_corners(mouth: MouthMap, u: Float, v: Float, shape: MouthShape) -> Float:
    """Return the source u of each output place: corners come in when rounded, go out when wide."""
    side, up, down = mouth.radii
    across, along = (u - mouth.centre[0]) / side, v - mouth.centre[1]
    along = np.where(along > 0, along / down, along / up)
    weight = np.maximum(1.0 - across**2 - along**2, 0.0) ** 2
    pull = ROUND_CORNERS * shape.rounded - WIDE_CORNERS * shape.wide
    return np.asarray(u + (u - mouth.centre[0]) * (pull * weight), np.float32)
