"""From landmarks to the faces that are drawn."""

from __future__ import annotations

import numpy as np

from musetalk_pipeline.artifacts import Face
from musetalk_pipeline.boxes import NOSE, Box
from musetalk_pipeline.faces import Landmarks
from musetalk_pipeline.faces.face_boxes import MIN_FACE_PX, face_of, smooth
from musetalk_pipeline.options import FaceOptions


def landmarks(x0: float, x1: float, nose_y: float, y1: float, box: Box | None = None) -> Landmarks:
    points = np.full((68, 2), ((x0 + x1) / 2, nose_y), np.float32)
    points[0], points[16], points[8] = (x0, nose_y), (x1, nose_y), ((x0 + x1) / 2, y1)
    points[NOSE, 1] = nose_y
    return Landmarks(points, 0.9, box)


def face(box: Box) -> Face:
    return Face(np.zeros((68, 2), np.float32), box, 1.0)


def test_v15_has_a_chin_margin_and_ignores_the_shift():
    found = landmarks(100, 200, 150, 220)
    options = FaceOptions("v15", bbox_shift=7, extra_margin=12)
    assert face_of(found, 640, 480, options).box == Box(100, 80, 200, 232)


def test_v1_has_a_shift_and_no_margin():
    found = landmarks(100, 200, 150, 220)
    options = FaceOptions("v1", bbox_shift=10, extra_margin=12)
    assert face_of(found, 640, 480, options).box == Box(100, 100, 200, 220)


def test_the_margin_ends_at_the_bottom_of_its_own_frame():
    """The reference takes the height of whatever frame a loop looked at last (Q14)."""
    found = landmarks(100, 200, 150, 220)
    assert face_of(found, 640, 225, FaceOptions()).box.y1 == 225


def test_a_box_over_the_edge_is_clipped_not_stretched():
    """The reference clips the crop but not the paste, so the face is stretched (Q13)."""
    over = landmarks(560, 700, 400, 520)
    assert face_of(over, 640, 480, FaceOptions()).box == Box(560, 280, 640, 480)


def test_the_references_box_goes_over_the_edge():
    over = landmarks(560, 700, 400, 520)
    v15, v1 = FaceOptions(edges="stretch"), FaceOptions("v1", edges="stretch")
    assert face_of(over, 640, 480, v15).box == Box(560, 280, 700, 480)  # the margin ends at 480
    assert face_of(over, 640, 480, v1).box == Box(560, 280, 700, 520)
    # The visible 80 columns are stretched to 140, and the points with them: 640 becomes 700.
    [chin_x, nose_y] = face_of(over, 640, 480, v15).points[[8, NOSE], [0, 1]]
    assert (chin_x, nose_y) == (560 + 70 * 140 / 80, 400)
    within = landmarks(100, 200, 150, 220)
    clipped, stretched = (face_of(within, 640, 480, o) for o in (FaceOptions(), v15))
    assert clipped.box == stretched.box
    np.testing.assert_array_equal(clipped.points, stretched.points)
    assert face_of(landmarks(635, 700, 150, 220), 640, 480, v15) is None  # too little to see


def test_where_points_make_no_box_another_detectors_stands_in():
    degenerate = landmarks(50, 50, 60, 60, Box(40, 30, 90, 100))
    assert face_of(degenerate, 640, 480, FaceOptions("v1")).box == Box(40, 30, 90, 100)
    assert face_of(landmarks(50, 50, 60, 60), 640, 480, FaceOptions("v1")) is None


def test_a_face_too_small_to_draw_is_none():
    tiny = landmarks(100, 100 + MIN_FACE_PX - 1, 100, 140)
    assert face_of(tiny, 640, 480, FaceOptions()) is None
    assert face_of(None, 640, 480, FaceOptions()) is None


def test_smoothing_averages_the_neighbours():
    shaking = [face(Box(100 + dx, 100, 200 + dx, 200)) for dx in (0, 6, 0, 6, 0)]
    smoothed = smooth(shaking, 1)
    assert [f.box.x0 for f in smoothed] == [103, 102, 104, 102, 103]


def test_smoothing_reaches_over_neither_a_cut_nor_a_gap():
    here, there = face(Box(100, 100, 200, 200)), face(Box(400, 100, 500, 200))
    assert smooth([here, there, None, here], 3) == [here, there, None, here]


def test_without_smoothing_the_boxes_are_the_references():
    faces = [face(Box(i, 0, 100 + i, 100)) for i in range(5)]
    assert smooth(faces, 0) == faces
