"""Whose mouth is redrawn: one person through cuts, or everybody; all else is the source."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.engines import make_audio_encoder, make_engine
from musetalk_pipeline.errors import FaceNotFound, InvalidOptions, JobCancelled, NoFaceFound
from musetalk_pipeline.face_choice import FaceAtBox, FaceAtPoint, FaceChoice
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.reader import Frames, ReadFrames
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MediaLimits,
)
from musetalk_pipeline.pipeline import Result, Tools, run
from musetalk_pipeline.preview import make_preview
from musetalk_pipeline.stages import open_job
from musetalk_pipeline.survey import Survey
from tests.decoding import frames_of
from tests.media.two_people import FPS, Frame, Person, scene, write

LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
LEFT, RIGHT = 20, 270  # where a head's picture begins
WOMAN, MAN = (100, 150), (340, 130)  # points in their faces, she on the left, he on the right
REACH = 90  # pixels around the middle of a head within which its face may change


def choosing(face: FaceChoice) -> JobOptions:
    return replace(LOSSLESS, face=FaceOptions(face=face))


def both(*, swapped: bool = False) -> Frame:
    left, right = ("man", "woman") if swapped else ("woman", "man")
    return scene(Person(left, LEFT), Person(right, RIGHT))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Made:
    """A job's result, the frames of its source and its own, (n, H, W, 3) uint8 BGR."""

    result: Result
    source: NDArray[np.uint8]
    frames: NDArray[np.uint8]

    def changed(self, frame: int) -> set[str]:
        """Return in which halves of a frame anything has changed."""
        differs = (self.source[frame] != self.frames[frame]).any(axis=2)
        middle = differs.shape[1] // 2
        halves = {"left": differs[:, :middle], "right": differs[:, middle:]}
        return {name for name, half in halves.items() if half.any()}


@pytest.fixture
def made(tmp_path: Path, speech: Callable[..., Path], tools) -> Callable[..., Made]:
    """Return `made(scenes, options, tools) -> Made`. The sound is as long as the video."""

    def do(scenes: Sequence[Frame], options: JobOptions, own: Tools = tools) -> Made:
        video, out = write(tmp_path / "people.mp4", scenes), tmp_path / "out.mp4"
        result = run(video, speech(len(scenes) / FPS), out, options, own, block_s=0.5)
        return Made(result, frames_of(video), frames_of(out))

    return do


CUTS = [both()] * 10 + [both(swapped=True)] * 9 + [scene(Person("man", LEFT))] * 8 + [both()] * 5


@pytest.mark.parametrize(
    "face",
    [
        FaceAtPoint((340, 150), 15),  # on the right after the first cut
        pytest.param(FaceAtPoint(WOMAN), marks=pytest.mark.slow),
        pytest.param(FaceAtBox((60, 100, 90, 110)), marks=pytest.mark.slow),
        pytest.param(FaceAtPoint(WOMAN, 31), marks=pytest.mark.slow),
    ],
)
def test_a_person_is_followed_through_cuts(made, face: FaceChoice) -> None:
    """Her places swap with his, then she is gone for eight frames, in which his are untouched."""
    job = made(CUTS, choosing(face))
    assert [job.changed(n) for n in range(32)] == (
        [{"left"}] * 10 + [{"right"}] * 9 + [set()] * 8 + [{"left"}] * 5
    )
    assert job.result.frames_with_face == 24
    assert job.result.warnings == (
        "The chosen person was found in 1.0 of 1.3 s of the video; the other frames are shown as "
        "they are.",
    )


@pytest.mark.slow
def test_the_other_person_can_be_chosen(made) -> None:
    job = made(CUTS, choosing(FaceAtPoint(MAN)))
    assert [job.changed(n) for n in range(32)] == (
        [{"right"}] * 10 + [{"left"}] * 9 + [{"left"}] * 8 + [{"right"}] * 5
    )
    assert job.result.warnings == ()


def test_pixels_outside_the_chosen_face_are_the_source(made) -> None:
    job = made([both()] * 12, choosing(FaceAtPoint(WOMAN)))
    differs = (job.source != job.frames).any(axis=(0, 3))
    rows, columns = np.nonzero(differs)
    assert len(rows) > 500
    assert columns.min() >= 60 and columns.max() < 150
    assert rows.min() >= 100 and rows.max() < 225


@pytest.mark.slow
def test_without_a_choice_the_most_prominent_face_speaks_and_it_is_said(made) -> None:
    job = made([both()] * 12, LOSSLESS)
    assert all(job.changed(n) == {"right"} for n in range(12))
    [warning] = job.result.warnings
    assert warning.startswith("Two faces were seen;") and "`face`" in warning


@pytest.mark.slow
def test_all_faces_are_redrawn(made) -> None:
    job = made(CUTS, choosing("all"))
    two, one = {"left", "right"}, {"left"}
    assert [job.changed(n) for n in range(32)] == [two] * 19 + [one] * 8 + [two] * 5
    assert job.result.frames_with_face == 32 and job.result.warnings == ()


@pytest.mark.slow
def test_musetalk_redraws_all_faces_too(made, seeded_weights: Path, tools) -> None:
    """Latents, masks and drawn faces have a row for each face of a frame, not for each frame."""
    musetalk = replace(
        tools,
        engine=make_engine("musetalk", seeded_weights, device="cpu"),
        audio_encoder=make_audio_encoder("musetalk", seeded_weights),
    )
    scenes = [both()] * 3 + [scene(Person("man", LEFT))] * 2 + [scene()] + [both()]
    job = made(scenes, choosing("all"), musetalk)
    two, one = {"left", "right"}, {"left"}
    assert [job.changed(n) for n in range(7)] == [two] * 3 + [one] * 2 + [set()] + [two]
    assert job.result.engine == "musetalk" and job.result.frames_with_face == 6


@pytest.mark.slow
def test_a_face_is_drawn_the_same_alone_and_with_all(made, tmp_path: Path) -> None:
    """Each face has its own crop and mask, whoever else is redrawn."""
    scenes = [both()] * 6
    alone = made(scenes, choosing(FaceAtPoint(MAN))).frames
    together = made(scenes, choosing("all")).frames
    close = np.abs(alone.astype(int) - together)[:, :, 240:]
    assert close.mean() < 0.5 and (alone[:, :, :240] != together[:, :, :240]).any()


@pytest.mark.slow
def test_a_person_who_walks_past_another_is_not_mixed_up(made) -> None:
    """A small head passes a large one at a distance; the boxes in between are interpolated."""
    walk = [scene(Person("man", RIGHT), Person("woman", 4 * n, 90, 120)) for n in range(24)]
    job = made(walk, choosing(FaceAtPoint((60, 170))))
    assert [job.changed(n) for n in range(24)] == [{"left"}] * 24
    for n in range(24):
        columns = np.nonzero((job.source[n] != job.frames[n]).any(axis=(0, 2)))[0]
        assert 4 * n < columns.min() and columns.max() < 4 * n + 113


@pytest.mark.slow
def test_places_are_those_of_the_source_whatever_the_picture(made) -> None:
    small = FrameOptions(resolution="240x240", fit="pad")
    job = made([both()] * 6, replace(choosing(FaceAtPoint(WOMAN)), frame=small))
    assert job.frames.shape[1:3] == (240, 240) and job.result.frames_with_face == 6
    plain = made([both()] * 6, replace(choosing(FaceAtPoint(MAN)), frame=small))
    differs = (job.frames != plain.frames).any(axis=(0, 3))
    assert differs[:, :120].any() and differs[:, 120:].any()


@pytest.mark.slow
def test_a_crop_follows_the_chosen_person(made) -> None:
    square = FrameOptions(aspect_ratio="1:1", fit="crop")
    job = made([both()] * 6, replace(choosing(FaceAtPoint(WOMAN)), frame=square))
    assert job.frames.shape[1:3] == (270, 270)
    assert np.abs(job.frames[0, :, 200:].astype(int) - job.source[0, :, 200:270]).mean() < 3


@pytest.mark.slow
def test_a_rotated_video_is_pointed_at_as_it_is_displayed(
    clip, speech, tools, tmp_path: Path
) -> None:
    video = clip(frames=6, rotation=90, face_share=0.5, face_at=(0.7, 0.5))
    out = tmp_path / "out.mp4"
    result = run(video, speech(0.24), out, choosing(FaceAtPoint((224, 120))), tools)
    assert (result.width, result.height, result.frames_with_face) == (320, 240, 6)


def test_a_place_without_a_face_is_refused_with_the_places_of_the_faces(made) -> None:
    with pytest.raises(FaceNotFound) as refused:
        made([both()] * 6, choosing(FaceAtPoint((240, 20), 3)))
    error = refused.value
    assert error.code == "face_not_found"
    assert error.message.startswith(
        "There is no face at the point 240, 20 of frame 3. Two faces were found in that frame, at "
    )
    assert (error.details["faces"], error.details["frame"]) == (2, 3)
    boxes = [[int(n) for n in box.split(",")] for box in str(error.details["boxes"]).split("; ")]
    for (left, _, width, _), (x, _) in zip(boxes, (MAN, WOMAN), strict=True):
        assert left < x < left + width


@pytest.mark.slow
def test_a_frame_without_faces_is_said_to_have_none(made) -> None:
    with pytest.raises(FaceNotFound, match="No faces were found in that frame"):
        made([scene()] * 3 + [both()] * 6, choosing(FaceAtPoint(WOMAN, 1)))


def test_a_frame_beyond_the_end_is_refused(made) -> None:
    with pytest.raises(InvalidOptions, match="ends with frame 5"):
        made([both()] * 6, choosing(FaceAtPoint(WOMAN, 6)))


@pytest.mark.slow
def test_a_person_whom_the_sound_does_not_reach_is_refused(speech, tools, tmp_path: Path) -> None:
    video = write(tmp_path / "late.mp4", [scene(Person("man", RIGHT))] * 10 + [both()] * 10)
    with pytest.raises(NoFaceFound, match="in no frame that the audio reaches"):
        run(video, speech(0.2), tmp_path / "o.mp4", choosing(FaceAtPoint(WOMAN, 15)), tools)


@pytest.mark.slow
def test_a_preview_shows_the_frame_of_the_choice_and_all_of_its_faces(
    speech, tools, tmp_path: Path
) -> None:
    video = write(tmp_path / "cuts.mp4", CUTS)
    made = make_preview(video, speech(1.28), choosing(FaceAtPoint((340, 150), 15)), tools)
    assert made.source_frame == 15 and made.face.box.x0 > 240
    assert len(made.visible) == 2
    assert any(box.is_around_middle_of(made.face.box) for box in made.visible)
    assert any(box.is_around_middle_of(Box(70, 70, 180, 200)) for box in made.visible)


@dataclass
class Reading:
    """Reads frames as `open_job` has them read, and notes which."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, source: SourceVideo, picture: Picture) -> ReadFrames:
        def read(start: int, end: int) -> Frames:
            self.asked.append((start, end))
            yield from read_frames(source, picture, start, end)

        return read


def test_frames_without_the_person_are_refused_if_that_is_requested(made) -> None:
    face = FaceOptions(face=FaceAtPoint(WOMAN), faceless="refuse")
    with pytest.raises(NoFaceFound, match="does not show the chosen person") as refused:
        made([both()] * 2 + [scene(Person("man", LEFT))] * 2, replace(LOSSLESS, face=face))
    assert refused.value.details["frame"] == 2


def test_a_preview_reads_only_the_frame_of_the_choice(speech, tools, tmp_path: Path) -> None:
    """The sliders of a page make one preview after the other, so none may read the whole video."""
    files = JobFiles(write(tmp_path / "cuts.mp4", CUTS), speech(1.28))
    read_for = Reading()
    options = choosing(FaceAtPoint((340, 150), 15))
    for follows in (False, True):
        folder = tmp_path / str(follows)
        folder.mkdir()
        open_job(
            *(files, folder, options, MediaLimits(), tools.detector),
            read_for=read_for,
            follows=follows,
        )
    assert read_for.asked == [(15, 16), (0, 32)]


class Kept:
    """The surveys of earlier jobs, by how far they reached."""

    def __init__(self) -> None:
        self.surveys: dict[int, Survey] = {}

    def find(self, reached: int, fps: Fraction, *, is_exact: bool) -> None:
        """Not used for a person."""
        raise AssertionError

    def find_longer(self, reached: int, fps: Fraction) -> Survey | None:
        return min(
            (each for each in self.surveys.items() if each[0] >= reached), default=(0, None)
        )[1]

    def keep(self, reached: int, fps: Fraction, found: Survey) -> None:
        self.surveys[reached] = found


def test_a_person_is_followed_once_for_sounds_of_any_length(speech, tools, tmp_path: Path) -> None:
    video, kept, opened = write(tmp_path / "cuts.mp4", CUTS), Kept(), []
    read_for = Reading()
    for number, seconds in enumerate((1.0, 1.28, 0.6, 1.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = open_job(
            *(JobFiles(video, speech(seconds)), folder, choosing(FaceAtPoint(WOMAN))),
            *(MediaLimits(), tools.detector),
            known_surveys=kept,
            read_for=read_for,
        )
        opened.append((job.track is not None and job.track.at(12), job.warnings))
    assert read_for.asked == [(0, 25), (0, 32)] and sorted(kept.surveys) == [25, 32]
    assert len({place for place, _ in opened}) == 1
    told = [warning for _, [warning] in (each for each in opened if each[1])]
    assert [" in 0.8 of 1.0 s" in told[0], " in 1.0 of 1.3 s" in told[1]] == [True, True]
    assert opened[2][1] == () and opened[3][1] == opened[0][1]


@pytest.mark.slow
def test_a_face_that_the_preview_command_prints_is_what_make_takes(speech, tmp_path: Path) -> None:
    video, sound = write(tmp_path / "people.mp4", [both()] * 6), speech(0.24)

    def lipsync(command: str, out: str, *more: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "lipsync", command, video, sound, "-o", tmp_path / out]
        done = subprocess.run(
            [*words, "--json", *more], check=True, timeout=120, capture_output=True, text=True
        )
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told

    faces = lipsync("preview", "p.png")["faces"]
    hers = min(faces, key=lambda word: int(word.removeprefix("box:").split(",")[0]))
    lipsync("make", "out.mp4", "--face", hers, "--crf", "0", "--preset", "ultrafast")
    source, made = frames_of(video), frames_of(tmp_path / "out.mp4")
    np.testing.assert_array_equal(source[:, :, 240:], made[:, :, 240:])
    assert (source[:, :, :240] != made[:, :, :240]).any(axis=(1, 2, 3)).all()


def test_following_ends_when_the_job_is_cancelled(speech, tools, tmp_path: Path) -> None:
    """No decoder is left (`no_leftovers`), and no further frame is searched."""
    files = JobFiles(write(tmp_path / "cuts.mp4", CUTS), speech(1.28))
    checks = iter(range(10))

    def check() -> None:
        if next(checks, None) is None:
            raise JobCancelled("Nobody waits.")

    options = choosing(FaceAtPoint(WOMAN))
    with pytest.raises(JobCancelled):
        open_job(files, tmp_path, options, MediaLimits(), tools.detector, check=check)
