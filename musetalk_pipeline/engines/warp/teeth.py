"""The teeth that a source shows. They belong to the skull, so they stay while the lips move."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.engines.warp.mouth_map import (
    TABLE,
    Float,
    MouthMap,
    colours,
    smooth,
    table_places,
)
from musetalk_pipeline.pixels.crops import FACE_SIDE

MIN_SEEN_PX = 3.0  # the height of an opening below which its teeth are not worth keeping
MIN_RED_APART = 0.04  # how much redder than skin lips are; less means a picture without colour


@dataclass(frozen=True, slots=True)
class Teeth:
    """The teeth that the source shows, in their place.

    `rows`, `columns`: their place within what is drawn. `picture`: (h, w, 3) float32 BGR. `share`:
    (h, w) float32, 1 for pixels of teeth. `enamel`: their colour.
    """

    rows: slice
    columns: slice
    picture: Float
    share: Float
    enamel: Float

    def put_into(self, cavity: Float, first_row: int) -> None:
        """Lay the teeth over the painted inside of the mouth, in place. `cavity` begins with
        `first_row` of what is drawn.
        """
        start = max(self.rows.start - first_row, 0)
        part = cavity[start : max(self.rows.stop - first_row, 0), self.columns]
        above = start + first_row - self.rows.start  # rows of teeth that the lip hides
        mine = slice(above, above + len(part))
        part += (self.picture[mine] - part) * self.share[mine, :, None]


def seen_teeth(
    crop: NDArray[np.uint8], mouth: MouthMap, x0: int, y0: int, u: Float, v: Float
) -> Teeth | None:
    """Find the teeth in the source's own opening; None if it shows none.

    `x0`, `y0`: of the crop's pixel that `u` and `v` begin with.
    """
    gap = mouth.lower - mouth.upper
    if float(gap.max()) * float(np.hypot(*mouth.to_crop[:, 1])) < MIN_SEEN_PX:
        return None
    rows, columns = _around_opening(mouth, x0, y0)
    u, v = u[rows, columns], v[rows, columns]
    height, width = u.shape
    if not u.size:
        return None
    left, top = x0 + columns.start, y0 + rows.start
    picture = crop[top : top + height, left : left + width].astype(np.float32)
    at = table_places(mouth, u)
    upper, lower, edge = mouth.upper[at], mouth.lower[at], 0.08 * gap[at]
    is_inside = (v > upper + edge) & (v < lower - edge)
    share = np.where(is_inside, _likeness_to_teeth(picture, *colours(crop, mouth)), 0.0)
    if np.count_nonzero(share > 0.5) < MIN_SEEN_PX**2:
        return None
    enamel = picture[share > 0.5].mean(axis=0)
    # The lines between two teeth belong to them.
    share = cv2.morphologyEx(share.astype(np.float32), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    share = cv2.GaussianBlur(share, (0, 0), 1.0)
    return Teeth(rows, columns, picture, np.asarray(share, np.float32), enamel)


def _around_opening(mouth: MouthMap, x0: int, y0: int) -> tuple[slice, slice]:
    """Return the rows and columns from `x0`, `y0` on that hold the source's own opening."""
    u = np.linspace(mouth.u_low, mouth.u_high, TABLE, dtype=np.float32)
    within = (u > mouth.corners[0]) & (u < mouth.corners[1])
    edges = (np.column_stack((u, side))[within] for side in (mouth.upper, mouth.lower))
    places = np.concatenate(list(edges)) @ mouth.to_crop[:, :2].T + mouth.to_crop[:, 2]
    low = np.clip(np.floor(places.min(axis=0)) - (x0, y0) - 2, 0, FACE_SIDE).astype(int)
    high = np.clip(np.ceil(places.max(axis=0)) - (x0, y0) + 2, 0, FACE_SIDE).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _likeness_to_teeth(picture: Float, skin: Float, lip: Float) -> Float:
    """Return 1 for pixels of teeth, which are bright and hardly redder than the skin."""
    bright = picture.max(axis=2) / max(float(skin.max()), 1.0)
    skin_red, lip_red = (float(c[2] - c[1]) / max(float(c[2]), 1.0) for c in (skin, lip))
    apart = lip_red - skin_red
    if apart < MIN_RED_APART:  # black and white
        return smooth((bright - 0.75) / 0.2)
    red = np.maximum(picture[..., 2], 1.0)
    redness = np.asarray((red - picture[..., 1]) / red, np.float32)
    is_pale = smooth((skin_red + 0.6 * apart - redness) / (0.4 * apart))
    return is_pale * smooth((bright - 0.4) / 0.25)
