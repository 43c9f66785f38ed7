"""From a detector's landmarks to the faces that are drawn. Pure.

Boxes are the reference's (docs/reference.md §1.2, §1.3). If the reference would stretch a face,
because its box leaves the frame, the box is clipped, unless an option keeps the reference's result
(docs/fidelity.md, Q13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, in_rows
from musetalk_pipeline.boxes import Box, face_box, with_chin_margin
from musetalk_pipeline.faces.detector import Landmarks
from musetalk_pipeline.options import FaceOptions

MIN_FACE_PX = 8  # smaller boxes may leave their own crop box, and show no mouth
ALIKE = 0.5  # guess: overlap (intersection over union) below which two boxes are not one face


def face_of(
    found: Landmarks | None, width_px: int, height_px: int, options: FaceOptions
) -> Face | None:
    """Return the face to draw in a frame of that size; None if there is none to draw."""
    if found is None:
        return None
    is_v1 = options.version == "v1"
    box = face_box(found.points, options.bbox_shift if is_v1 else 0) or found.box
    if box is None:
        return None
    if not is_v1:
        box = with_chin_margin(box, height_px, options.extra_margin)
    inside = box.clipped(width_px, height_px)
    if min(inside.width, inside.height) < MIN_FACE_PX:
        return None
    if options.edges == "clip":
        return Face(found.points, inside, found.score)
    whole = Box(inside.x0, inside.y0, box.x1, box.y1)
    return Face(_stretched(found.points, inside, whole), whole, found.score)


def _stretched(points: NDArray[np.float32], inside: Box, whole: Box) -> NDArray[np.float32]:
    """Return where points lie once the visible part of a box has been stretched to all of it."""
    corner = np.array([whole.x0, whole.y0], np.float32)
    growth = (whole.width / inside.width, whole.height / inside.height)
    return corner + (points - corner) * np.array(growth, np.float32)


def faces_of(
    found: Sequence[Landmarks], width_px: int, height_px: int, options: FaceOptions
) -> Face | None:
    """Return the faces to draw in a frame of that size: the first one, with the others; None if
    there is none.
    """
    made = [face_of(each, width_px, height_px, options) for each in found]
    faces = [face for face in made if face is not None]
    return replace(faces[0], others=tuple(faces[1:])) if faces else None


def smooth(faces: Sequence[Face | None], reach: int) -> list[Face | None]:
    """Return the faces with their boxes averaged over `reach` neighbours on each side.

    Neighbours without a face, or with a face elsewhere (after a cut), do not count. With `reach` 0
    the boxes are the reference's.
    """
    return [
        face if face is None else _smoothed(face, _near(faces, i, reach))
        for i, face in enumerate(faces)
    ]


def _smoothed(face: Face, near: Sequence[Box]) -> Face:
    others = tuple(replace(each, box=_mean_box(each.box, near)) for each in face.others)
    return replace(face, box=_mean_box(face.box, near), others=others)


def _near(faces: Sequence[Face | None], place: int, reach: int) -> list[Box]:
    return [face.box for face in in_rows(faces[max(0, place - reach) : place + reach + 1])]


def _mean_box(box: Box, boxes: Sequence[Box]) -> Box:
    alike = [other for other in boxes if overlap(box, other) >= ALIKE]
    sides = zip(*((b.x0, b.y0, b.x1, b.y1) for b in alike), strict=True)
    return Box(*(round(sum(side) / len(alike)) for side in sides))


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes that are not empty."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    common = max(0, width) * max(0, height)
    return common / (one.width * one.height + other.width * other.height - common)
