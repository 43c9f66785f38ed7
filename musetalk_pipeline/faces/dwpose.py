"""What every DWPose detector shares: from frames to network input, from its output to 68 points.

RTMPose-l whole-body, 384x288, with the whole frame as the person box, as the reference calls it
(docs/reference.md §1.2), or with a box around a face that another detector has found. Steps:
1. Widen the box by 1.25 to the network's aspect ratio, warp it to 288x384, normalise.
2. Run the network on the picture and on its mirror image, and average (flip test).
3. Each point is where its two distributions over half pixels are highest; map it back to the frame.
4. Keep the face points of the 133, which are in iBUG order.

Equal to mmpose 1.3.2: GetBBoxCenterScale, TopdownAffine, PoseDataPreprocessor, RTMCCHead.predict,
SimCCLabel.decode and TopdownPoseEstimator.add_pred_to_datasample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks

Float = NDArray[np.float32]

# (n, 3, 384, 288) normalised RGB in; (n, 133, 576) over x and (n, 133, 768) over y out.
Network = Callable[[Float], tuple[Float, Float]]

WEIGHTS = Path("dwpose", "dw-ll_ucoco_384.pth")  # in the models folder, as published
WIDTH, HEIGHT = 288, 384
PADDING = 1.25  # GetBBoxCenterScale's default
MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
BINS_PER_PIXEL = 2  # simcc_split_ratio
X_BINS, Y_BINS = BINS_PER_PIXEL * WIDTH, BINS_PER_PIXEL * HEIGHT
N_POINTS = 133
FACE = slice(23, 91)  # the 68 iBUG points among the 133 (reference: preprocessing.py:99)
# A person as RTMPose expects one, in longer sides of the face from brows to chin: the width, the
# height, and how far above the brows it begins, where the hair ends. These are guesses: head and
# shoulders then fill the box, and the face a third of its width, as in clips that the reference
# handles well.
PERSON_WIDTH, PERSON_HEIGHT, ABOVE_BROWS = 3.0, 4.0, 0.75
BATCH_FRAMES = 4  # doubled by the flip test; larger gains nothing on a CPU


def _mirror_order() -> NDArray[np.intp]:
    """Return, for each of the 133 points, which point it becomes in a mirror."""
    order = list(range(N_POINTS))
    pairs = [(left, left + 1) for left in range(1, 17, 2)]  # eyes, ears, arms and legs; 0 is a nose
    pairs += [(left, left + 3) for left in (17, 18, 19)]  # toes and heels
    face = [(jaw, 16 - jaw) for jaw in range(8)]
    face += [(brow, 43 - brow) for brow in range(17, 22)]
    face += [(31, 35), (32, 34)]  # nostrils
    face += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]  # eyes
    face += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58)]  # outer lip
    face += [(60, 64), (61, 63), (65, 67)]  # inner lip
    pairs += [(FACE.start + left, FACE.start + right) for left, right in face]
    pairs += [(left, left + 21) for left in range(91, 112)]  # hands
    for left, right in pairs:
        order[left], order[right] = right, left
    return np.array(order)


MIRROR_ORDER = _mirror_order()


@dataclass(frozen=True, slots=True)
class View:
    """The part of a frame that the network receives, in frame pixels; it may exceed the frame."""

    centre: Float  # (2,) x, y
    size: Float  # (2,) width, height; 3:4

    @classmethod
    def of_person(cls, box: Box) -> View:
        """Return the view on a person: 1.25 times the box, widened to the network's shape."""
        # In float32 throughout, because mmpose's box is a float32 array.
        low, high = np.array([[box.x0, box.y0], [box.x1, box.y1]], np.float32)
        width, height = (high - low) * np.float32(PADDING)
        aspect = WIDTH / HEIGHT
        is_wide = width > height * aspect
        size = (width, width / aspect) if is_wide else (height * aspect, height)
        centre = (low + high) * np.float32(0.5)
        return cls(centre, np.array(size, np.float32))

    def warp_matrix(self) -> NDArray[np.float64]:
        """Return the (2, 3) matrix from frame to input pixels."""
        half = float(self.size[0]) / 2
        x, y = float(self.centre[0]), float(self.centre[1])
        source = np.array([[x, y], [x - half, y], [x - half, y + half]], np.float32)
        target = np.array([[0.5, 0.5], [0, 0.5], [0, 0.5]], np.float32) * (WIDTH, HEIGHT)
        target[2, 1] += WIDTH / 2  # a third corner at a right angle: no shear, one scale
        return np.asarray(cv2.getAffineTransform(source, target.astype(np.float32)))

    def to_frame(self, points: Float) -> Float:
        """Map points of the network's input, (…, 2) x, y, to frame pixels."""
        share = points / np.array([WIDTH, HEIGHT], np.float64)
        return (share * self.size + self.centre - 0.5 * self.size).astype(np.float32)


def person_around(points: Float, width_px: int, height_px: int) -> Box:
    """Return the person box of a face in a frame of that size. `points`: (68, 2) x, y, iBUG."""
    low, high = points.min(0), points.max(0)
    side = float((high - low).max())
    x, top = float(low[0] + high[0]) / 2, float(low[1]) - ABOVE_BROWS * side
    reach = PERSON_WIDTH / 2 * side
    box = Box(
        math.floor(x - reach),
        math.floor(top),
        math.ceil(x + reach),
        math.ceil(top + PERSON_HEIGHT * side),
    )
    return box.clipped(width_px, height_px)


def network_input(
    frames: Sequence[NDArray[np.uint8]], people: Sequence[Box | None] | None = None
) -> tuple[Float, list[View]]:
    """Return the (n, 3, 384, 288) float32 RGB input for (H, W, 3) BGR frames, and their views.

    `people`: the person box of each frame; None is the whole frame.
    """
    views = []
    inputs = np.empty((len(frames), 3, HEIGHT, WIDTH), np.float32)
    mean, std = np.array(MEAN_RGB, np.float32), np.array(STD_RGB, np.float32)
    for row, frame, person in zip(inputs, frames, people or [None] * len(frames), strict=True):
        view = View.of_person(person or Box(0, 0, frame.shape[1], frame.shape[0]))
        warped = cv2.warpAffine(frame, view.warp_matrix(), (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        row[:] = ((warped[..., ::-1].astype(np.float32) - mean) / std).transpose(2, 0, 1)
        views.append(view)
    return inputs, views


def run_flip_test(network: Network, inputs: Float) -> tuple[Float, Float]:
    """Return the mean of the network's outputs for the inputs and for their mirror images."""
    both = np.concatenate([inputs, inputs[..., ::-1]])
    over_x, over_y = network(both)
    n = len(inputs)
    mirrored_x, mirrored_y = over_x[n:, MIRROR_ORDER, ::-1], over_y[n:, MIRROR_ORDER]
    half = np.float32(0.5)
    return (over_x[:n] + mirrored_x) * half, (over_y[:n] + mirrored_y) * half


def decode(over_x: Float, over_y: Float) -> tuple[Float, Float]:
    """Return points (n, K, 2) in pixels of the network's input, and scores (n, K).

    A score is the lower of the two maxima. A point with a score of 0 or less lies at -0.5, -0.5, as
    in mmpose.
    """
    bins = np.stack([over_x.argmax(-1), over_y.argmax(-1)], -1).astype(np.float32)
    scores = np.minimum(over_x.max(-1), over_y.max(-1))
    bins[scores <= 0] = -1
    return bins / np.float32(BINS_PER_PIXEL), scores


class DwposeDetector:
    """Finds the 68 points of one person per frame, always; `presence` decides by their score.

    `faces` locates the person. Without it, or if it finds no face, the whole frame is the person.
    """

    def __init__(self, name: str, network: Network, faces: LandmarkDetector | None = None) -> None:
        self._name = name
        self._network = network
        self._faces = faces

    @property
    def name(self) -> str:
        """`onnx` or `mmpose`."""
        return self._name

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks | None]:
        """Return one entry per frame, never None. `score`: mean over the 68 points, in 0..1.

        Point scores are peaks of distributions trained towards Gaussians of height 1; they are not
        probabilities, and a clear face may exceed 1, hence the clipping.
        """
        found: list[Landmarks | None] = []
        for start in range(0, len(frames), BATCH_FRAMES):
            found += self._detect_batch(frames[start : start + BATCH_FRAMES])
        return found

    def refine(
        self, frames: Sequence[NDArray[np.uint8]], located: Sequence[Landmarks]
    ) -> list[Landmarks | None]:
        """Return the points of the person whose face was located, one per frame, never None."""
        found: list[Landmarks | None] = []
        for start in range(0, len(located), BATCH_FRAMES):
            part = list(frames[start : start + BATCH_FRAMES])
            faces = located[start : start + BATCH_FRAMES]
            people = [
                person_around(face.points, frame.shape[1], frame.shape[0])
                for frame, face in zip(part, faces, strict=True)
            ]
            found += self._points(part, people)
        return found

    def _detect_batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks]:
        frames = list(frames)  # they may be made on demand, and are used twice
        return self._points(frames, self._people(frames))

    def _points(
        self, frames: Sequence[NDArray[np.uint8]], people: Sequence[Box | None] | None
    ) -> list[Landmarks]:
        inputs, views = network_input(frames, people)
        points, scores = decode(*run_flip_test(self._network, inputs))
        return [
            Landmarks(view.to_frame(points[i, FACE]), float(scores[i, FACE].clip(0, 1).mean()))
            for i, view in enumerate(views)
        ]

    def _people(self, frames: Sequence[NDArray[np.uint8]]) -> list[Box | None] | None:
        if self._faces is None:
            return None
        return [
            None if face is None else person_around(face.points, frame.shape[1], frame.shape[0])
            for frame, face in zip(frames, self._faces.detect(frames), strict=True)
        ]
