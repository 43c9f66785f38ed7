"""Whether a frame has a face. Frames here carry in their first pixels what is to be found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_pipeline.__main__ import _load, _parser
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces import Landmarks, make_detector
from musetalk_pipeline.faces.presence import ByS3fd, ByScore, find_present, regular_samples
from musetalk_pipeline.networks.s3fd import FILE, S3fd

Frame = NDArray[np.uint8]
FACE = Box(3, 4, 50, 60)


def frame(number: int, *, score: float = 1.0, s3fd: bool = True, points: str = "good") -> Frame:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, :4, 0] = (number, round(score * 100), s3fd, {"good": 0, "none": 1, "flat": 2}[points])
    return pixels


class PixelDetector:
    """Reads score and points from the frame's first pixels; notes which frames it saw."""

    name = "pixels"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def detect(self, frames: Sequence[Frame]) -> list[Landmarks | None]:
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Frame) -> Landmarks | None:
        number, score, _, kind = (int(value) for value in frame[0, :4, 0])
        self.seen.append(number)
        if kind == 1:
            return None
        points = np.zeros((68, 2), np.float32)
        if kind == 0:
            points[:, 0] = np.arange(68)
            points[:, 1] = np.arange(68)
        return Landmarks(points, score / 100)


class PixelFinder:
    """S3FD's place: a face where the frame says so; notes which frames it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def detect(self, frames: Sequence[Frame]) -> list[Box | None]:
        self.seen += [int(frame[0, 0, 0]) for frame in frames]
        return [FACE if frame[0, 2, 0] else None for frame in frames]


@given(st.lists(st.booleans(), max_size=40))
def test_interval_1_is_the_reference(truth: list[bool]) -> None:
    assert find_present(len(truth), 1, truth.__getitem__) == truth


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 30))
def test_every_look_is_believed(truth: list[bool], interval: int) -> None:
    asked = set()

    def has_face(i: int) -> bool:
        asked.add(i)
        return truth[i]

    present = find_present(len(truth), interval, has_face)
    assert len(present) == len(truth)
    assert all(present[i] == truth[i] for i in asked)
    assert asked >= set(regular_samples(len(truth), interval))


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 30), st.booleans())
def test_one_change_is_found_exactly(n: int, change: int, interval: int, first: bool) -> None:
    truth = [first if i < change else not first for i in range(n)]
    asked = set()

    def has_face(i: int) -> bool:
        asked.add(i)
        return truth[i]

    assert find_present(n, interval, has_face) == truth
    extra = math.ceil(math.log2(interval)) if interval > 1 else 0
    assert len(asked) <= len(regular_samples(n, interval)) + extra


def test_regular_samples_reach_both_ends() -> None:
    assert regular_samples(0, 5) == []
    assert regular_samples(1, 5) == [0]
    assert regular_samples(12, 5) == [0, 5, 10, 11]
    assert regular_samples(11, 5) == [0, 5, 10]


def test_a_located_face_is_weak_or_not_by_its_own_score_and_s3fd_is_not_asked() -> None:
    class Scores(PixelDetector):
        def refine(
            self, frames: Sequence[Frame], located: Sequence[Landmarks]
        ) -> list[Landmarks | None]:
            return [self._one(each) for each in frames]

    frames = [frame(0, score=0.29, s3fd=False), frame(1, score=0.3, s3fd=False)]
    located = [Landmarks(np.zeros((68, 2), np.float32), 1.0)] * 2
    weak = ByScore(Scores(), min_score=0.3).refine(frames, located)
    assert [landmarks is not None for landmarks in weak] == [False, True]
    finder = PixelFinder()
    kept = ByS3fd(Scores(), finder, 1).refine(frames, located)
    assert all(landmarks is not None for landmarks in kept) and finder.seen == []


def test_by_score_drops_weak_faces_and_keeps_the_rest() -> None:
    frames = [frame(0, score=0.29), frame(1, score=0.3), frame(2, points="none")]
    found = ByScore(PixelDetector(), min_score=0.3).detect(frames)
    assert [landmarks is not None for landmarks in found] == [False, True, False]


def test_by_s3fd_drops_frames_without_a_face_whatever_the_score() -> None:
    frames = [frame(i, score=0.01, s3fd=i >= 3) for i in range(6)]
    found = ByS3fd(PixelDetector(), PixelFinder(), 5).detect(frames)
    assert [landmarks is not None for landmarks in found] == [False] * 3 + [True] * 3


def test_by_s3fd_costs_little_and_detects_only_where_a_face_is() -> None:
    detector, finder = PixelDetector(), PixelFinder()
    frames = [frame(i, s3fd=i < 30) for i in range(50)]
    ByS3fd(detector, finder, 12).detect(frames)
    assert detector.seen == list(range(30))
    assert sorted(finder.seen) == sorted(set(finder.seen))  # no frame twice
    assert len(finder.seen) <= len(regular_samples(50, 12)) + 4


def test_the_answer_depends_on_the_block_alone() -> None:
    frames = [frame(i, s3fd=i not in (4, 5, 6)) for i in range(30)]
    rule = ByS3fd(PixelDetector(), PixelFinder(), 5)
    first = [landmarks is None for landmarks in rule.detect(frames)]
    rule.detect(frames[7:19])
    assert [landmarks is None for landmarks in rule.detect(frames)] == first
    assert first == [4 <= i <= 6 for i in range(30)]


def test_s3fds_box_stands_in_where_points_make_none() -> None:
    frames = [frame(0), frame(1, points="flat"), frame(2, points="none"), frame(3)]
    good, flat, none, _ = ByS3fd(PixelDetector(), PixelFinder(), 10).detect(frames)
    assert good is not None and good.box is None
    assert flat is not None and flat.box == FACE
    assert none is None


def test_an_interval_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="presence_interval"):
        ByS3fd(PixelDetector(), PixelFinder(), 0)


def test_no_frames_are_no_answers() -> None:
    assert ByS3fd(PixelDetector(), PixelFinder()).detect([]) == []
    assert ByScore(PixelDetector()).detect([]) == []


def write_s3fd(models: Path, background: float) -> None:
    network = S3fd().requires_grad_(False)
    for name, parameter in network.named_parameters():
        torch.nn.init.zeros_(parameter)
        if name.endswith("_conf.bias"):
            parameter[0] = background
    (models / FILE).parent.mkdir()
    torch.save(network.state_dict(), models / FILE)


@pytest.mark.parametrize("background", [10.0, -10.0])
def test_make_detector_lets_s3fd_decide_over_mesh(tmp_path: Path, background: float) -> None:
    """With a network that sees a face everywhere, mesh's face counts; with a blind one, nothing."""
    skimage = pytest.importorskip("skimage")
    write_s3fd(tmp_path, background)
    face = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1][:240, 100:340])
    detector = make_detector("mesh", tmp_path, presence="s3fd", presence_interval=2)
    found = detector.detect([face, face])
    assert detector.name == "mesh"
    assert [landmarks is not None for landmarks in found] == [background < 0] * 2


def test_the_command_line_sets_how_often_s3fd_looks(tmp_path: Path) -> None:
    write_s3fd(tmp_path, 10.0)
    words = ["v.mp4", "a.wav", "--engine", "warp", "--models", str(tmp_path)]
    words += ["--face-presence", "s3fd", "--presence-interval", "7"]
    detector = _load(_parser().parse_args(words)).detector
    assert isinstance(detector, ByS3fd)
    assert detector._interval == 7


def test_s3fd_without_its_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="fetch --s3fd"):
        make_detector("mesh", tmp_path, presence="s3fd")
    with pytest.raises(ModelLoadFailed, match="S3FD needs downloaded weights"):
        make_detector("mesh", None, presence="s3fd")
