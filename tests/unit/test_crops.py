"""What the networks see of a frame."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.pixels.crops import FACE_SIDE, PARSE_SIDE, face_crop, parse_input


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def test_the_face_is_stretched_to_a_square_by_lanczos():
    frame = noise(240, 320)
    crop = face_crop(frame, Box(30, 40, 130, 200))
    expected = cv2.resize(frame[40:200, 30:130], (256, 256), interpolation=cv2.INTER_LANCZOS4)
    assert crop.shape == (FACE_SIDE, FACE_SIDE, 3)
    np.testing.assert_array_equal(crop, expected)


@given(st.integers(0, 280), st.integers(0, 200), st.integers(4, 200), st.integers(4, 200))
def test_the_parser_sees_what_pillow_crops_and_resizes(x, y, width, height):
    frame = noise(240, 320)
    face = Box(x, y, x + width, y + height).clipped(320, 240)
    box = crop_box(face)
    if box.is_empty:
        return
    expected = (
        Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
        .crop((box.x0, box.y0, box.x1, box.y1))  # black outside the frame
        .resize((PARSE_SIDE, PARSE_SIDE), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(parse_input(frame, face), np.asarray(expected))


@pytest.mark.parametrize("width", [2, *range(3, 340, 12), 340, 342, 344, 500])
def test_the_parser_sees_pillows_pixels_at_every_size(width):
    frame, face = noise(800, 800), Box(400 - width // 2, 399, 400 + (width + 1) // 2, 401)
    box = crop_box(face)
    expected = Image.fromarray(frame[box.y0 : box.y1, box.x0 : box.x1, ::-1].copy()).resize(
        (PARSE_SIDE, PARSE_SIDE), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(parse_input(frame, face), np.asarray(expected))
