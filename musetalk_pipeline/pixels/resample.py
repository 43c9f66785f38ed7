"""Pillow's bicubic resampling of a square mask, for the part of it that is needed.

The parser's mask is resized for every output frame, but only the lower half of the face survives
(docs/reference.md §1.9). Pillow cannot compute only a part with the same pixels, so its
integer arithmetic (Pillow, src/libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc`)
is repeated here on sparse matrices: bit-equal, at less than half of the cost.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from musetalk_pipeline.boxes import Box

PRECISION_BITS = 32 - 8 - 2  # Pillow's fixed point
BICUBIC_A = -0.5
SUPPORT = 2.0
# A face that moves keeps within a few dozen sizes; each takes some 30 kB.
SIZES_KEPT = 128


def resize_part(mask: NDArray[np.uint8], side: int, part: Box) -> NDArray[np.uint8]:
    """Return `part` of the square `mask` resized to `side`, as `Image.resize(…, BICUBIC)` does.

    `part`: in pixels of the result, within it.
    """
    weights = _weights(mask.shape[0], side)
    rows = weights[part.y0 : part.y1]
    first, last = int(rows.indices.min()), int(rows.indices.max()) + 1
    # Pillow goes across first and rounds to 8 bits, then down; both as (wanted, all) @ (all, …).
    across = _rounded(weights[part.x0 : part.x1] @ mask[first:last].T.astype(np.int32))
    down = _rounded(rows[:, first:last] @ np.ascontiguousarray(across.T))
    return down.astype(np.uint8)


def _rounded(total: NDArray[np.int32]) -> NDArray[np.int32]:
    total += 1 << (PRECISION_BITS - 1)
    total >>= PRECISION_BITS
    return np.clip(total, 0, 255, out=total)


@lru_cache(SIZES_KEPT)
def _weights(n_in: int, n_out: int) -> csr_array:
    """Return the (n_out, n_in) int32 weights of one direction."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    reach = SUPPORT * stretch
    centres = (np.arange(n_out) + 0.5) * scale
    first = np.maximum(0, (centres - reach + 0.5).astype(np.int64))
    last = np.minimum(n_in, (centres + reach + 0.5).astype(np.int64))
    taps = np.arange(int((last - first).max()))
    places = first[:, None] + taps
    values = _bicubic((places - centres[:, None] + 0.5) * (1.0 / stretch))
    values[places >= last[:, None]] = 0.0
    total = np.zeros(n_out)
    for column in values.T:  # in Pillow's order: the sum's last bit matters
        total += column
    values *= (1.0 / total)[:, None]
    fixed = np.trunc(values * (1 << PRECISION_BITS) + np.copysign(0.5, values)).astype(np.int32)
    row, tap = np.nonzero(fixed)
    return csr_array((fixed[row, tap], (row, places[row, tap])), shape=(n_out, n_in))


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(x), BICUBIC_A
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
