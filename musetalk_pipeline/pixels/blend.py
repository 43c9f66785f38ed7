"""Puts a drawn face back: the soft mask of a face, and the integer paste through it.

It is bit-equal to the reference (docs/reference.md §1.9), but computes only what can change.
Outside the face box the reference pastes the frame onto itself, and above the middle of the crop
its mask is zero. Neither is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.pixels.resample import resize_part

MASK_SIDE = 512  # the parser's picture, which the replace-masks come from


@dataclass(frozen=True, slots=True)
class SoftMask:
    """How much of the drawn face shows. `alpha`: (height, width) uint8 of `box`, in frame pixels.

    `box` lies within the face box and is as small as it can be.
    """

    box: Box
    alpha: NDArray[np.uint8]

    def clipped(self, width_px: int, height_px: int) -> SoftMask | None:
        """Return the part inside a frame of that size; None if there is none."""
        inside = self.box.clipped(width_px, height_px)
        return None if inside.is_empty else SoftMask(inside, _part(self.alpha, self.box, inside))


def unpack_mask(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one row of `AvatarBlock.masks` as (512, 512) uint8, 0 or 255."""
    bits = np.unpackbits(packed).reshape(MASK_SIDE, MASK_SIDE)
    return np.multiply(bits, np.uint8(255), dtype=np.uint8)


def crop_mask(
    replace: NDArray[np.uint8], face: Box, blur: float, window: Box | None = None
) -> NDArray[np.uint8]:
    """Return the blurred mask of a face's crop box, or only the `window` of it.

    `replace`: (512, 512) uint8, 0 or 255. `window`: in pixels of the crop box; None is all of it.
    The lower half of the face box is kept, then blurred by a kernel of `blur` crop widths.
    """
    crop = crop_box(face)
    window = window or Box(0, 0, crop.width, crop.height)
    reach = int(blur * crop.width // 2 * 2) // 2
    # What the blur reads for the window. If this ends at the crop's edge, the blur mirrors it, as
    # in the reference; otherwise it reaches as far as the blur does.
    canvas = Box(
        window.x0 - reach, window.y0 - reach, window.x1 + reach, window.y1 + reach
    ).clipped(crop.width, crop.height)
    kept = _kept_part(face, crop)
    sharp = np.zeros((canvas.height, canvas.width), np.uint8)
    seen = Box(
        max(kept.x0, canvas.x0),
        max(kept.y0, canvas.y0),
        min(kept.x1, canvas.x1),
        min(kept.y1, canvas.y1),
    )
    if not seen.is_empty:
        _part(sharp, canvas, seen)[...] = resize_part(replace, crop.width, seen)
    soft = cv2.GaussianBlur(sharp, (2 * reach + 1, 2 * reach + 1), 0)
    return _part(np.asarray(soft, dtype=np.uint8), canvas, window)


def soft_mask(replace: NDArray[np.uint8], face: Box, blur: float) -> SoftMask | None:
    """Return what of `face` is replaced; None if nothing is. `replace`: (512, 512) uint8, 0/255."""
    crop = crop_box(face)
    reach = int(blur * crop.width // 2 * 2) // 2
    kept = _kept_part(face, crop)
    # The blur also carries the mask upwards, past the middle of the crop.
    window = Box(kept.x0, max(face.y0 - crop.y0, kept.y0 - reach), kept.x1, kept.y1)
    if window.is_empty:
        return None
    alpha = crop_mask(replace, face, blur, window)
    x, y, width, height = cv2.boundingRect(alpha)
    if width == 0:
        return None
    x0, y0 = crop.x0 + window.x0 + x, crop.y0 + window.y0 + y
    return SoftMask(Box(x0, y0, x0 + width, y0 + height), alpha[y : y + height, x : x + width])


def paste_face(
    region: NDArray[np.uint8],
    region_box: Box,
    drawn: NDArray[np.uint8],
    face: Box,
    mask: SoftMask,
    weight: float = 1.0,
) -> None:
    """Blend a drawn face into `region: uint8 BGR`, the pixels of `region_box` of a frame, in place.

    `drawn`: (256, 256, 3) uint8 BGR, which fills `face`. `region_box` holds `mask.box`. `weight`
    0 to 1 fades the drawn face; 1 is the reference.
    """
    stretched = cv2.resize(drawn, (face.width, face.height), interpolation=cv2.INTER_LINEAR)
    foreground = _part(stretched, face, mask.box)
    background = _part(region, region_box, mask.box)
    background[...] = mix(background, foreground, _faded(mask.alpha, weight))


def mix(
    background: NDArray[np.uint8], foreground: NDArray[np.uint8], alpha: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return `background` with `foreground` over it, both (h, w, 3) uint8; `alpha`: (h, w) uint8.

    Pillow's own rounding, `t = bg*(255-m) + fg*m + 128; ((t >> 8) + t) >> 8`. Every step fits 16
    bits.
    """
    cover = cv2.merge([alpha, alpha, alpha])  # one multiply without broadcasting is faster
    total = np.multiply(foreground, cover, dtype=np.uint16)
    total += np.multiply(background, np.bitwise_not(cover), dtype=np.uint16)
    total += 128
    total += total >> 8
    total >>= 8
    blended: NDArray[np.uint8] = total.astype(np.uint8)
    return blended


def _faded(alpha: NDArray[np.uint8], weight: float) -> NDArray[np.uint8]:
    if weight >= 1.0:
        return alpha
    faded: NDArray[np.uint8] = np.rint(alpha * np.float32(max(0.0, weight))).astype(np.uint8)
    return faded


def _part(pixels: NDArray[np.uint8], outer: Box, inner: Box) -> NDArray[np.uint8]:
    """Return the view of `inner` in the pixels of `outer`."""
    return pixels[
        inner.y0 - outer.y0 : inner.y1 - outer.y0, inner.x0 - outer.x0 : inner.x1 - outer.x0
    ]


def _kept_part(face: Box, crop: Box) -> Box:
    """Return the part of the crop, in its own pixels, where the mask survives: the face's lower
    half.
    """
    return Box(
        face.x0 - crop.x0,
        max(face.y0 - crop.y0, crop.height // 2),
        face.x1 - crop.x0,
        face.y1 - crop.y0,
    )
