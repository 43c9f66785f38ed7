"""Whether a frame has a face: by the landmarks' own score, or by S3FD as the reference does it.

`landmarks` costs nothing and scores exactly the points that are used. `s3fd` is the reference's
rule (docs/reference.md §1.2): a frame has a face if S3FD finds one, and S3FD's box is used if the
points make no box. At full resolution that network costs more than all others of a source frame
together (2.1 s at 720p on two cores), so it searches every `interval`-th frame only.

They differ if a face turns away or is covered (S3FD loses it first, while DWPose still guesses its
points), if several people are visible (S3FD may have found another one), and, with an interval
above 1, if a face is gone for less than an interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box, face_box
from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks

Frame = NDArray[np.uint8]

# Mean score of the 68 points below which DWPose has no face. A guess until it is checked with the
# published weights: 0.3 is what DWPose's authors draw a single point from.
MIN_SCORE = 0.3
INTERVAL_FRAMES = 12  # guess: half a second at 25 fps, a twelfth of S3FD's cost


class FaceBoxFinder(Protocol):
    """The part of S3FD that decides whether a frame has a face."""

    def detect(self, frames: Sequence[Frame]) -> list[Box | None]:
        """Return the most certain face of each frame, None where there is none."""
        ...


class ByScore:
    """A detector that reports no face if its points' score is too low."""

    def __init__(self, detector: LandmarkDetector, min_score: float = MIN_SCORE) -> None:
        self._detector = detector
        self._min_score = min_score

    @property
    def name(self) -> str:
        """Return the inner detector's name."""
        return self._detector.name

    def detect(self, frames: Sequence[Frame]) -> list[Landmarks | None]:
        """Return one entry per frame, None where there is no face."""
        return self._certain(self._detector.detect(frames))

    def refine(
        self, frames: Sequence[Frame], located: Sequence[Landmarks]
    ) -> list[Landmarks | None]:
        """Return the points of a located face of each frame, None where the score is too low."""
        return self._certain(self._detector.refine(frames, located))

    def _certain(self, found: Sequence[Landmarks | None]) -> list[Landmarks | None]:
        return [
            each if each is not None and each.score >= self._min_score else None for each in found
        ]


class ByS3fd:
    """A detector that reports a face if S3FD finds one; S3FD samples every `interval`-th frame.

    The result depends on the frames of one call alone, so a call must hold a whole block.
    """

    def __init__(
        self,
        detector: LandmarkDetector,
        finder: FaceBoxFinder,
        interval: int = INTERVAL_FRAMES,
    ) -> None:
        if interval < 1:
            raise ValueError(f"presence_interval must be at least 1, not {interval}")
        self._detector = detector
        self._finder = finder
        self._interval = interval

    @property
    def name(self) -> str:
        """Return the inner detector's name."""
        return self._detector.name

    def detect(self, frames: Sequence[Frame]) -> list[Landmarks | None]:
        """Return one entry per frame, None where S3FD finds no face (or the detector no points).

        If the points make no box, `Landmarks.box` is S3FD's.
        """
        samples = _Samples(self._finder, frames)
        samples.take(regular_samples(len(frames), self._interval))
        present = find_present(len(frames), self._interval, lambda i: samples[i] is not None)
        wanted = [i for i, is_present in enumerate(present) if is_present]
        found: list[Landmarks | None] = [None] * len(frames)
        for i, landmarks in zip(wanted, self._detector.detect(Picked(frames, wanted)), strict=True):
            if landmarks is not None and face_box(landmarks.points) is None:
                landmarks = replace(landmarks, box=samples[i])
            found[i] = landmarks
        return found

    def refine(
        self, frames: Sequence[Frame], located: Sequence[Landmarks]
    ) -> list[Landmarks | None]:
        """Return the points of a located face of each frame.

        S3FD is not asked: it returns one face of a frame, which may be another person's.
        """
        return self._detector.refine(frames, located)


class Picked(Sequence[Frame]):
    """Some of a block's frames, each as often as it is picked. None is kept, because the block may
    make frames on demand.
    """

    def __init__(self, frames: Sequence[Frame], picked: Sequence[int]) -> None:
        self._frames = frames
        self._picked = picked

    def __len__(self) -> int:
        return len(self._picked)

    @overload
    def __getitem__(self, place: int) -> Frame: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Frame]: ...

    def __getitem__(self, place: int | slice) -> Frame | Sequence[Frame]:
        if isinstance(place, slice):
            return [self._frames[i] for i in self._picked[place]]
        return self._frames[self._picked[place]]


class _Samples:
    """S3FD's results for a block. A frame is searched once, and only if its result is needed."""

    def __init__(self, finder: FaceBoxFinder, frames: Sequence[Frame]) -> None:
        self._finder = finder
        self._frames = frames
        self._seen: dict[int, Box | None] = {}

    def take(self, wanted: Sequence[int]) -> None:
        """Search several frames at once."""
        boxes = self._finder.detect(Picked(self._frames, wanted))
        self._seen.update(zip(wanted, boxes, strict=True))

    def __getitem__(self, i: int) -> Box | None:
        if i not in self._seen:
            self.take([i])
        return self._seen[i]


def regular_samples(n_frames: int, interval: int) -> list[int]:
    """Return the frames that are searched in any case: every `interval`-th and the last."""
    return sorted({*range(0, n_frames, interval), n_frames - 1}) if n_frames else []


def find_present(n_frames: int, interval: int, has_face: Callable[[int], bool]) -> list[bool]:
    """Return, for each frame of a block, whether it has a face, while searching few of them.

    The regular samples come first. Between two that agree all frames count as the same; between two
    that differ the change is found by bisection, so one change costs log2(interval) more. With
    interval 1 every frame is searched, as in the reference.
    """
    samples = regular_samples(n_frames, interval)
    if not samples:
        return []
    present = [has_face(0)]
    for before, after in itertools.pairwise(samples):
        first, last = has_face(before), has_face(after)
        change = after if first == last else _first_like(last, before, after, has_face)
        present += [first] * (change - before - 1) + [last] * (after - change + 1)
    return present


def _first_like(wanted: bool, before: int, after: int, has_face: Callable[[int], bool]) -> int:
    """Return the first frame with the result `wanted`, which `after` has and `before` has not."""
    while after - before > 1:
        middle = (before + after) // 2
        if has_face(middle) == wanted:
            after = middle
        else:
            before = middle
    return after
