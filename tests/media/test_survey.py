"""What is decided from a few frames before a job begins: no face at all, or more than one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_pipeline.errors import NoFaceFound
from musetalk_pipeline.faces import LandmarkDetector, Landmarks, make_detector
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.options import FrameOptions, JobOptions, MediaLimits
from musetalk_pipeline.stages import OpenJob, open_job
from musetalk_pipeline.survey import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    REMEDY,
    Survey,
    evenly_spaced,
    sample_count,
    spread_out,
)

Frame = NDArray[np.uint8]
FPS = 25
SIZE = (480, 270)


class Counting:
    """A detector that counts the frames that it is asked about."""

    def __init__(self, inner: LandmarkDetector) -> None:
        self._inner = inner
        self.asked = 0

    @property
    def name(self) -> str:
        return self._inner.name

    def detect(self, frames: Sequence[Frame]) -> list[Landmarks | None]:
        self.asked += len(frames)
        return self._inner.detect(frames)


def people(*faces: tuple[int, int, int]) -> Frame:
    """A grey picture with the astronaut's head at each (x, y), so many pixels high."""
    head = skimage.data.astronaut()[0:190, 130:310, ::-1]
    frame = np.full((SIZE[1], SIZE[0], 3), 110, np.uint8)
    for x, y, height in faces:
        small = cv2.resize(head, (height * 180 // 190, height), interpolation=cv2.INTER_AREA)
        frame[y : y + height, x : x + small.shape[1]] = small
    return frame


def write(path: Path, frames: Sequence[Frame]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def opened(tmp_path: Path, speech: Callable[..., Path]) -> Callable[..., tuple[OpenJob, int]]:
    """Return `opened(frames, fit) -> (job, frames that the detector was asked about)`."""

    def do(frames: Sequence[Frame], fit: str = "pad") -> tuple[OpenJob, int]:
        detector = Counting(make_detector("mesh"))
        video = write(tmp_path / "people.mp4", frames)
        options = JobOptions(frame=FrameOptions(fit=fit))  # type: ignore[arg-type]
        audio = speech(len(frames) / FPS)
        try:
            job = open_job(JobFiles(video, audio), tmp_path, options, MediaLimits(), detector)
        except NoFaceFound as refused:
            assert detector.asked == refused.details["looks"]
            raise
        return job, detector.asked

    return do


NOBODY = people()
SOMEBODY = people((150, 20, 200))


def test_a_video_without_a_face_is_refused_after_nine_frames(opened) -> None:
    """Mend 2.9: all frames were looked at, at length, before the refusal."""
    with pytest.raises(NoFaceFound, match="in 9 frames spread over") as refused:
        opened([NOBODY] * 60)
    assert (refused.value.details, refused.value.input) == ({"looks": 9}, "video")
    assert refused.value.hint


@pytest.mark.parametrize("begins_s", [0, 3, 6.5, 11])
def test_a_face_that_is_seen_for_a_second_is_found(opened, begins_s: float) -> None:
    """Mend 2.9: looking at some frames refuses nothing that the whole run would accept."""
    first = round(begins_s * FPS)
    frames = [SOMEBODY if first <= i < first + FPS else NOBODY for i in range(12 * FPS)]
    opened(frames)


def test_a_video_with_a_face_is_looked_at_twice(opened) -> None:
    job, asked = opened([SOMEBODY] * 60)
    assert asked == 2 and job.warnings == ()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_which_of_two_faces_speaks_is_said(opened, fit: str) -> None:
    """Mend 2.9: the larger of two faces was taken silently."""
    job, _ = opened([people((40, 30, 200), (330, 90, 110))] * 12, fit)
    assert job.warnings == (f"Two faces were seen; the larger one, on the left, speaks. {REMEDY}",)


def test_the_place_of_the_speaker_is_its_own(opened) -> None:
    job, _ = opened([people((20, 90, 110), (180, 30, 190), (375, 90, 100))] * 12)
    assert job.warnings == (
        f"Three faces were seen; the largest one, in the middle, speaks. {REMEDY}",
    )


def test_a_face_in_the_background_is_not_mentioned(opened) -> None:
    job, _ = opened([people((100, 10, 240), (400, 100, 60))] * 12)
    assert job.warnings == ()


def test_a_speaker_who_changes_is_said(opened) -> None:
    first, second = people((40, 30, 200), (330, 90, 120)), people((40, 90, 120), (270, 30, 200))
    job, _ = opened([first] * 20 + [second] * 20)
    assert job.warnings == (
        "Two faces were seen; in each frame the most prominent one speaks, which may change. "
        f"{REMEDY}",
    )


@given(st.integers(1, 100_000), st.sampled_from([Fraction(1), Fraction(24000, 1001), Fraction(60)]))
def test_looks_are_spread_and_few(reached: int, fps: Fraction) -> None:
    count = sample_count(reached, fps)
    wanted = evenly_spaced(reached, count)
    assert MIN_SAMPLES <= count <= MAX_SAMPLES and len(wanted) == min(count, reached)
    assert wanted[0] == 0 and wanted[-1] < reached
    edges = [*wanted, reached]
    gap_s = max(b - a for a, b in itertools.pairwise(edges)) / fps
    assert gap_s <= max(1 + 1 / fps, Fraction(reached, MAX_SAMPLES) / fps + 1 / fps)


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=70))
def test_spreading_out_loses_nothing(wanted: list[int]) -> None:
    order = list(spread_out(wanted))
    assert sorted(order) == sorted(wanted) and order[0] == wanted[0]


class OneSurvey:
    """A survey that an earlier job has made, once there was one."""

    def __init__(self) -> None:
        self.known: Survey | None = None

    def find(self, reached: int, fps: Fraction, *, is_exact: bool) -> Survey | None:
        return self.known

    def keep(self, reached: int, fps: Fraction, found: Survey) -> None:
        assert (reached, fps) == (10, 25)
        self.known = found


class Blind:
    """A detector that must not be used."""

    name = "mesh"

    def detect(self, frames: object) -> list[Landmarks | None]:
        raise AssertionError("the video is searched again")


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_video_that_was_surveyed_is_not_searched_again(clip, speech, tools, tmp_path, fit):
    files = JobFiles(clip(frames=10), speech(1.0))
    options = JobOptions(frame=FrameOptions(aspect_ratio="1:1", fit=fit))
    surveys, opened = OneSurvey(), []
    for number, detector in enumerate((tools.detector, Blind())):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        opened.append(
            open_job(files, folder, options, MediaLimits(), detector, known_surveys=surveys)
        )
    assert surveys.known is not None
    assert opened[0].picture == opened[1].picture
    assert opened[0].warnings == opened[1].warnings
