"""Part of a resized mask, bit for bit what Pillow gives for all of it."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.pixels.resample import resize_part


@given(
    st.integers(2, 1400),
    st.tuples(*(st.floats(0, 1) for _ in range(4))),
    st.integers(0, 9),
)
def test_a_part_equals_pillows(side, corners, seed):
    rough = np.random.default_rng(seed).normal(size=(4 + 12 * seed,) * 2).astype(np.float32)
    mask = np.where(cv2.resize(rough, (512, 512)) > 0, 255, 0).astype(np.uint8)
    (x0, x1), (y0, y1) = (sorted(int(c * side) for c in corners[i : i + 2]) for i in (0, 2))
    part = Box(x0, y0, min(x1 + 1, side), min(y1 + 1, side))
    part = Box(min(part.x0, side - 1), min(part.y0, side - 1), max(part.x1, 1), max(part.y1, 1))
    whole = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(
        resize_part(mask, side, part), whole[part.y0 : part.y1, part.x0 : part.x1]
    )
