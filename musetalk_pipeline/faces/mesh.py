"""Landmarks on a fresh machine: MediaPipe's face networks, read from its wheel, run by LiteRT.

Steps for one frame:
1. Find face boxes with the short-range network on the whole frame. If it finds none, use the
   full-range network, and then that one on overlapping tiles, smaller and smaller, for small faces.
2. Cut out a square that is turned upright by the eyes, and run the mesh network on it.
3. Cut out again by the mesh itself and run once more: a better centred square, steadier points.
4. Keep the 68 mesh points that stand for the iBUG order.

The mediapipe package is never imported (its own dependencies would downgrade ours); only its three
.tflite files are read. Graph constants come from the options in its repository, folder
mediapipe/modules: face_detection/*.pbtxt and face_landmark/*.pbtxt.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box, face_box
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces.cut_outs import (
    ROI_SCALE,
    Roi,
    angle_of,
    cut_square,
    cut_turned,
    roi_of_mesh,
    tile_levels,
)
from musetalk_pipeline.faces.detector import Landmarks

Float = NDArray[np.float32]

MESH_TO_IBUG = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),  # jaw
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),  # brows
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lip
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lip
)
MESH_SIDE = 192  # pixels of the mesh network's input
MIN_PRESENCE = 0.5  # the mesh network's own probability of a face (ThresholdingCalculator)
# A second pass steadies the points (jitter of a still face with noise 0.19 -> 0.16 px, measured);
# more are only needed if the first cut-out was badly centred, as it is for small faces.
MIN_PASSES, MAX_PASSES = 2, 5
NMS_IOU = 0.3  # NonMaxSuppressionCalculator.min_suppression_threshold
COUNTED_BOXES = 8  # that are given to the mesh network to count faces; each costs 3 ms
AROUND = 3  # how much larger than a face the square is in which it is found again
CANDIDATES = 3  # boxes of one search that are given to the mesh network before a closer one


@dataclass(frozen=True, slots=True)
class _Network:
    """One SSD network. `grids`: (cells a side, anchors a cell) of each output layer."""

    file: str
    side: int
    grids: tuple[tuple[int, int], ...]
    min_score: float


_SHORT_RANGE = _Network("face_detection/face_detection_short_range", 128, ((16, 2), (8, 6)), 0.5)
_FULL_RANGE = _Network("face_detection/face_detection_full_range_sparse", 192, ((48, 1),), 0.6)
_MESH_FILE = "face_landmark/face_landmark"


@dataclass(frozen=True, slots=True)
class _Detection:
    """A face box and its two eyes, all (x, y) in frame pixels."""

    low: Float
    high: Float
    eyes: Float  # (2, 2)
    score: float

    @property
    def area(self) -> float:
        return float(np.prod(self.high - self.low))

    def is_about(self, box: Box) -> bool:
        """Return whether each holds the middle of the other."""
        (x, y), (u, v) = (self.low + self.high) / 2, box.middle
        is_inside = box.x0 <= x < box.x1 and box.y0 <= y < box.y1
        return is_inside and bool((self.low <= (u, v)).all() and ((u, v) < self.high).all())


class _Detector:
    """An SSD face network, which turns pixels into boxes and eyes."""

    def __init__(self, network: _Network) -> None:
        self._network = network
        self._interpreter = _load(network.file)
        self._anchors = _anchors(network.grids)

    def find(self, frame: NDArray[np.uint8], x: int, y: int, side: int) -> list[_Detection]:
        """Return the faces of the square at (x, y), black where it leaves the frame; best first."""
        square = cut_square(frame, x, y, side, self._network.side)
        boxes, logits = _run(self._interpreter, square * 2.0 - 1.0)
        scores = _sigmoid(logits[0, :, 0])
        kept = np.flatnonzero(scores >= self._network.min_score)
        # Each row: centre, size, then key points (x, y), the eyes first; pixels from the anchor.
        rows = boxes[0, kept, :8].reshape(-1, 4, 2) / self._network.side
        points = np.asarray(rows + self._anchors[kept, None, :], np.float32)
        points[:, 1] = rows[:, 1]  # a size, to which no anchor is added
        points *= side
        points[:, (0, 2, 3)] += (x, y)
        return _merge(points, scores[kept])


class MeshDetector:
    """Landmarks from MediaPipe's face mesh. It is thread-safe and takes one frame at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # LiteRT interpreters are not thread-safe
        self._short_range = _Detector(_SHORT_RANGE)
        self._full_range = _Detector(_FULL_RANGE)
        self._mesh = _load(_MESH_FILE)

    @property
    def name(self) -> str:
        """Return `mesh`."""
        return "mesh"

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks | None]:
        """Return one entry per frame, None where there is no face.

        `frames`: (H, W, 3) uint8 BGR each. The largest face wins, then the most central one.
        """
        return [self._detect_one(frame) for frame in frames]

    def refine(
        self, frames: Sequence[NDArray[np.uint8]], located: Sequence[Landmarks]
    ) -> list[Landmarks | None]:
        """Return the points as they are, because this detector has located the faces."""
        return list(located)

    def faces(self, frame: NDArray[np.uint8]) -> list[Box]:
        """Return the boxes of all faces that stand out in a frame, the largest first.

        The frame is searched as a whole only: faces that are found only in tiles are background.
        """
        return [box for box, _ in self.all_faces(frame)]

    def all_faces(
        self,
        frame: NDArray[np.uint8],
        *,
        most_boxes: int = COUNTED_BOXES,
        with_small: bool = False,
    ) -> list[tuple[Box, Landmarks]]:
        """Return the boxes and the points of all faces that stand out, the largest first.

        `most_boxes`: that are looked into; a face has one or two. With `with_small`, the frame is
        searched in tiles too, which takes ten times as long.
        """
        found: list[tuple[Box, Landmarks]] = []
        with self._lock:
            searches = itertools.islice(self._searches(frame), None if with_small else 2)
            detections = list(itertools.chain(*searches))
            for detection in _by_prominence(detections, frame)[:most_boxes]:
                if any(detection.is_about(box) for box, _ in found):
                    continue  # both networks find the same faces
                landmarks = self._landmarks(frame, detection)
                box = None if landmarks is None else face_box(landmarks.points)
                is_new = box is not None and not any(box.is_around_middle_of(b) for b, _ in found)
                if box is not None and landmarks is not None and is_new:
                    found.append((box, landmarks))
        return sorted(found, key=lambda face: -face[0].area)

    def face_at(self, frame: NDArray[np.uint8], place: Box) -> Landmarks | None:
        """Return the face whose box is about `place`, in pixels of the frame; None without one.

        Only the surroundings are searched, so other faces, however large, do not matter.
        """
        side = max(place.width, place.height) * AROUND
        x, y = (round(middle - side / 2) for middle in place.middle)
        with self._lock:
            for network in (self._short_range, self._full_range):
                detections = network.find(frame, x, y, side)
                for detection in _nearest(detections, place)[:CANDIDATES]:
                    landmarks = self._landmarks(frame, detection)
                    box = None if landmarks is None else face_box(landmarks.points)
                    if box is not None and box.is_around_middle_of(place):
                        return landmarks
        return None

    def _detect_one(self, frame: NDArray[np.uint8]) -> Landmarks | None:
        with self._lock:
            for found in self._searches(frame):
                for detection in _by_prominence(found, frame)[:CANDIDATES]:
                    landmarks = self._landmarks(frame, detection)
                    if landmarks is not None:
                        return landmarks
        return None

    def _searches(self, frame: NDArray[np.uint8]) -> Iterator[list[_Detection]]:
        """Yield what each search of the frame finds, from the whole frame to small tiles."""
        height, width = frame.shape[:2]
        side = max(height, width)
        whole = (width - side) // 2, (height - side) // 2, side
        yield self._short_range.find(frame, *whole)
        yield self._full_range.find(frame, *whole)
        for tiles in tile_levels(width, height):
            yield [found for tile in tiles for found in self._full_range.find(frame, *tile)]

    def _landmarks(self, frame: NDArray[np.uint8], detection: _Detection) -> Landmarks | None:
        roi = _roi_of_detection(detection)
        for done in range(1, MAX_PASSES + 1):
            mesh, presence = self._run_mesh(frame, roi)
            if presence < MIN_PRESENCE:
                return None
            last, roi = roi, roi_of_mesh(mesh)
            if done >= MIN_PASSES and roi.is_near(last):
                break
        return Landmarks(np.ascontiguousarray(mesh[list(MESH_TO_IBUG)]), presence)

    def _run_mesh(self, frame: NDArray[np.uint8], roi: Roi) -> tuple[Float, float]:
        """Return the (468, 2) mesh in frame pixels and the probability that this is a face."""
        outputs = _run(self._mesh, cut_turned(frame, roi, MESH_SIDE))
        points = np.asarray(outputs[0].reshape(468, 3)[:, :2] / MESH_SIDE, np.float32)
        return roi.to_frame(points), float(_sigmoid(outputs[1])[0, 0, 0, 0])


def _load(file: str) -> Any:
    """Return a ready interpreter for one of the wheel's networks.

    Raises:
        ModelLoadFailed: the wheel is not installed, or is not the one that holds the networks.
    """
    # Imported late, because it loads a native library that a process without a detector never
    # needs.
    from ai_edge_litert.interpreter import Interpreter

    try:
        found = metadata.distribution("mediapipe").locate_file(f"mediapipe/modules/{file}.tflite")
        path = Path(str(found))
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
        interpreter.allocate_tensors()
    except (metadata.PackageNotFoundError, OSError, ValueError, RuntimeError) as exc:
        raise ModelLoadFailed(
            f"The landmark network {file}.tflite cannot be loaded; install it with "
            "`pip install --no-deps mediapipe==0.10.21`, or choose another detector.",
            network=file,
        ) from exc
    return interpreter


def _run(interpreter: Any, image: Float) -> list[Float]:
    """Run one (side, side, 3) float32 RGB image; return the outputs in the network's order."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    return [interpreter.get_tensor(out["index"]) for out in interpreter.get_output_details()]


def _sigmoid(logits: Float) -> Float:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -80.0, 80.0))), np.float32)


def _anchors(grids: tuple[tuple[int, int], ...]) -> Float:
    """Return (n, 2) anchor centres in 0..1: every cell's middle, once per anchor, row-major."""
    layers = []
    for cells, per_cell in grids:
        middles = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
        layers.append(np.repeat(grid, per_cell, axis=0))
    return np.concatenate(layers)


def _merge(points: Float, scores: Float) -> list[_Detection]:
    """Merge overlapping boxes into their score-weighted mean (the weighted non-maximum
    suppression of NonMaxSuppressionCalculator). `points`: (n, 4, 2) centre, size, two eyes.
    """
    order = np.argsort(-scores, kind="stable")
    merged: list[_Detection] = []
    while len(order):
        alike = _overlaps(points[order[0]], points[order]) > NMS_IOU
        alike[0] = True  # even a box without area suppresses itself, so this ends
        group = order[alike]
        centre, size, *eyes = np.average(points[group], axis=0, weights=scores[group])
        best = float(scores[order[0]])
        merged.append(
            _Detection(
                centre - size / 2, centre + size / 2, np.stack(eyes).astype(np.float32), best
            )
        )
        order = order[~alike]
    return merged


def _overlaps(one: Float, many: Float) -> Float:
    """Return the intersection over union of one (4, 2) box with many (n, 4, 2)."""
    low = np.maximum(one[0] - one[1] / 2, many[:, 0] - many[:, 1] / 2)
    high = np.minimum(one[0] + one[1] / 2, many[:, 0] + many[:, 1] / 2)
    common = np.prod(np.maximum(high - low, 0.0), axis=1)
    union = np.prod(one[1]) + np.prod(many[:, 1], axis=1) - common
    return np.asarray(common / np.maximum(union, 1e-6), np.float32)


def _by_prominence(found: list[_Detection], frame: NDArray[np.uint8]) -> list[_Detection]:
    """Sort by size, then by nearness to the middle; sizes within a quarter count as equal."""
    middle = np.array([frame.shape[1] / 2, frame.shape[0] / 2], np.float32)

    def rank(detection: _Detection) -> tuple[int, float]:
        distance = float(np.linalg.norm((detection.low + detection.high) / 2 - middle))
        return -round(np.log(max(detection.area, 1.0)) / np.log(1.25)), distance

    return sorted(found, key=rank)


def _nearest(found: list[_Detection], place: Box) -> list[_Detection]:
    """Sort by the distance from a place."""
    middle = np.array(place.middle, np.float32)
    return sorted(found, key=lambda one: float(np.linalg.norm((one.low + one.high) / 2 - middle)))


def _roi_of_detection(detection: _Detection) -> Roi:
    side = float((detection.high - detection.low).max()) * ROI_SCALE
    centre = np.asarray((detection.low + detection.high) / 2, np.float32)
    return Roi(centre, side, angle_of(*detection.eyes))
