"""From the parts of a face to the pixels that are replaced, equal to the reference.

Source: the reference's face_parsing/__init__.py (docs/reference.md §1.8).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.options import MaskOptions

# Classes of the parser (CelebAMask-HQ order).
SKIN, NOSE, MOUTH, UPPER_LIP, LOWER_LIP, NECK = 1, 10, 11, 12, 13, 14

_LIPS = (MOUTH, UPPER_LIP, LOWER_LIP)
_SIDE = 512
_JAW_SIDE = 33
_JAW_TIP = 10  # row of the kernel where its cone begins
_JAW_WIDTH = 21
_CHEEK_SIZE = (35, 3)


def replace_mask(labels: NDArray[np.uint8], options: MaskOptions) -> NDArray[np.uint8]:
    """Return the (512, 512) uint8 mask, 0 or 255, of what the generated face replaces.

    `labels`: (512, 512) uint8 class numbers of the crop box.
    """
    if options.parsing_mode == "raw":
        return _select(labels, (SKIN, *_LIPS))
    if options.parsing_mode == "neck":
        return _select(labels, (SKIN, *_LIPS, NECK))
    return _jaw_mask(labels, options.left_cheek_width, options.right_cheek_width)


def pack_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (32768,) bytes of a (512, 512) mask, eight row-major pixels each."""
    return np.packbits(mask > 0)


def _jaw_mask(labels: NDArray[np.uint8], left_cheek: int, right_cheek: int) -> NDArray[np.uint8]:
    """Extend the skin below the chin, and keep the mask off the edge of the cheeks."""
    skin = _select(labels, (SKIN,))
    lowered = cv2.dilate(skin, jaw_kernel())
    narrowed = cv2.erode(lowered, cheek_kernel(), iterations=2)
    cheeks = cheek_columns(left_cheek, right_cheek)
    mask = np.where(cheeks, narrowed, lowered)
    mask[labels == NOSE] = 0
    # The lips are added last, so they are replaced even if erosion removed the skin around them.
    return np.asarray(cv2.bitwise_or(mask, _select(labels, _LIPS)))


def jaw_kernel() -> NDArray[np.uint8]:
    """Return the (33, 33) kernel that pulls the skin downwards: a cone of 10 rows, then a block."""
    kernel = np.zeros((_JAW_SIDE, _JAW_SIDE), np.uint8)
    centre = _JAW_SIDE // 2
    for row in range(_JAW_TIP, _JAW_SIDE):
        reach = min(row - _JAW_TIP, _JAW_WIDTH // 2)
        kernel[row, centre - reach : centre + reach + 1] = 1
    return kernel


def cheek_kernel() -> NDArray[np.uint8]:
    """Return the (3, 35) flat ellipse that the cheeks are eroded with."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, _CHEEK_SIZE), np.uint8)


def cheek_columns(left_width: int, right_width: int) -> NDArray[np.bool_]:
    """Return (512,) True at the columns that count as cheek, the middle of the face being 256."""
    columns = np.arange(_SIDE)
    middle = _SIDE // 2
    return (columns <= middle - left_width) | (columns >= middle + right_width)


def _select(labels: NDArray[np.uint8], classes: tuple[int, ...]) -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    table[list(classes)] = 255
    return np.asarray(cv2.LUT(labels, table))
