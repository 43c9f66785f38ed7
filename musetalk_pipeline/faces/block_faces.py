"""The faces of a block's frames that are redrawn: the most prominent, a chosen one, or all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import NoFaceFound
from musetalk_pipeline.face_choice import MOST_DRAWN, MOST_FACES
from musetalk_pipeline.faces import shared_mesh
from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks
from musetalk_pipeline.faces.presence import Picked
from musetalk_pipeline.pixels.picture import is_shown
from musetalk_pipeline.plan import Block

Frame = NDArray[np.uint8]


def prominent_faces(
    frames: Sequence[Frame], inner: slice, detector: LandmarkDetector
) -> list[list[Landmarks]]:
    """Return the most prominent face of each frame, (H, W, 3) uint8 BGR each.

    `inner`: the frames of the block itself, among those around it.
    """
    # Three calls, because whether a face is present may be decided over all frames of a call.
    parts = (slice(0, inner.start), inner, slice(inner.stop, None))
    found = [each for part in parts if frames[part] for each in detector.detect(frames[part])]
    return [[] if each is None else [each] for each in found]


def chosen_faces(
    frames: Sequence[Frame], places: Sequence[Box | None], detector: LandmarkDetector
) -> list[list[Landmarks]]:
    """Return the face at a place of each frame, in its pixels; none where the place is None."""
    mesh = shared_mesh()
    located = [
        (at, face)
        for at, place in enumerate(places)
        if place is not None and (face := mesh.face_at(frames[at], place)) is not None
    ]
    return _refined(frames, located, detector)


def all_faces(
    frames: Sequence[Frame], picture: Picture, detector: LandmarkDetector
) -> list[list[Landmarks]]:
    """Return the faces that stand out in each frame, the largest first, at most MOST_DRAWN.

    `picture`: what the frames show; faces in the blurred copy around it do not count.
    """
    mesh, located = shared_mesh(), list[tuple[int, Landmarks]]()
    for at in range(len(frames)):
        found = mesh.all_faces(frames[at], most_boxes=2 * MOST_FACES)
        shown = [(at, face) for box, face in found if is_shown(box, picture)]
        located += shown[:MOST_DRAWN]
    return _refined(frames, located, detector)


def _refined(
    frames: Sequence[Frame],
    located: Sequence[tuple[int, Landmarks]],
    detector: LandmarkDetector,
) -> list[list[Landmarks]]:
    """Return the detector's own points of the faces, each with the number of its frame."""
    picked = Picked(frames, [at for at, _ in located])
    refined = detector.refine(picked, [face for _, face in located])
    found: list[list[Landmarks]] = [[] for _ in range(len(frames))]
    for (at, _), landmarks in zip(located, refined, strict=True):
        if landmarks is not None:
            found[at].append(landmarks)
    return found


def require_every_face(
    source: SourceVideo, block: Block, faces: Sequence[Face | None], *, is_chosen: bool
) -> None:
    """Refuse a block with a frame without a face. `is_chosen`: only one person's face counts.

    Raises:
        NoFaceFound: the message names the frame.
    """
    for frame, face in enumerate(faces, block.start):
        if face is None:
            at_s = float(frame / source.fps)
            missed = "does not show the chosen person" if is_chosen else "shows no face"
            raise NoFaceFound(
                f"Frame {frame} of the video, at {at_s:.2f} s, {missed}, and the option "
                "`faceless` is `refuse`. Cut the video there, or send `pass` to leave such frames "
                "as they are.",
                hint="Cut the video there, or leave `faceless` out.",
                frame=frame,
                at_s=round(at_s, 3),
            )
