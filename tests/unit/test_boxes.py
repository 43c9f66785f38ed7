"""Landmarks to boxes, in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.boxes import NOSE, Box, crop_box, face_box, with_chin_margin

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def points_of(left: float, top: float, right: float, bottom: float, nose_y: float) -> np.ndarray:
    points = np.full((68, 2), ((left + right) / 2, nose_y), np.float32)
    points[0], points[16], points[8] = (left, top), (right, top), ((left + right) / 2, bottom)
    points[NOSE, 1] = nose_y
    return points


def test_the_nose_lies_half_way_down_the_box():
    box = face_box(points_of(100.9, 80, 220, 260, nose_y=150))
    assert box == Box(100, 40, 220, 260)


def test_the_top_never_leaves_the_frame():
    assert face_box(points_of(100, 10, 220, 260, nose_y=100)) == Box(100, 0, 220, 260)


def test_the_shift_moves_the_nose_before_the_extremes_are_taken():
    points = points_of(100, 80, 220, 260, nose_y=150)
    assert face_box(points, bbox_shift=7) == Box(100, 54, 220, 260)
    # Shifted past the chin, the nose itself becomes the lowest point.
    assert face_box(points, bbox_shift=120) is None


@pytest.mark.parametrize(
    "points",
    [
        np.full((68, 2), 50, np.float32),  # one point
        points_of(-5, 80, 220, 260, nose_y=150),  # over the left edge, as the reference refuses it
    ],
)
def test_a_degenerate_box_is_none(points):
    assert face_box(points) is None


def test_the_chin_margin_stops_at_the_bottom_of_the_frame():
    box = Box(10, 20, 110, 470)
    assert with_chin_margin(box, 480, 10) == Box(10, 20, 110, 480)
    assert with_chin_margin(Box(10, 20, 110, 475), 480, 10) == Box(10, 20, 110, 480)


def test_the_crop_box_is_a_square_that_may_leave_the_frame():
    assert crop_box(Box(224, 119, 429, 375)) == Box(134, 55, 518, 439)
    assert crop_box(Box(0, 0, 100, 100)) == Box(-25, -25, 125, 125)


@given(st.integers(-50, 500), st.integers(-50, 500), st.integers(1, 600), st.integers(1, 600))
def test_a_clipped_box_never_leaves_its_frame(x, y, width, height):
    box = Box(x, y, x + width, y + height).clipped(320, 240)
    assert box.is_empty or (0 <= box.x0 < box.x1 <= 320 and 0 <= box.y0 < box.y1 <= 240)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(2, 600), st.integers(2, 600))
def test_the_crop_box_has_an_even_side_and_holds_the_face(x, y, width, height):
    face = Box(x, y, x + width, y + height)
    crop = crop_box(face)
    assert crop.width == crop.height
    assert crop.width % 2 == 0
    if min(width, height) >= 8:
        assert crop.x0 <= face.x0 and crop.x1 >= face.x1
        assert crop.y0 <= face.y0 and crop.y1 >= face.y1


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")
@pytest.mark.parametrize("shift", [0, 5, -7])
def test_boxes_equal_the_reference(shift):
    golden = np.load(GOLDEN / "coords.npz")
    boxes = [face_box(points, shift) for points in golden["landmarks"]]
    assert [[b.x0, b.y0, b.x1, b.y1] for b in boxes if b] == golden[f"bbox_shift_{shift}"].tolist()
