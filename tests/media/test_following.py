"""What tells people apart, and where a video may cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_pipeline.artifacts import ColourTags, Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.face_choice import FaceAtPoint
from musetalk_pipeline.faces import shared_mesh
from musetalk_pipeline.faces.likeness import ALIKE, describe, likeness
from musetalk_pipeline.faces.shots import CutFinder
from musetalk_pipeline.faces.tracklets import Pace, TrackletFinder
from musetalk_pipeline.survey import Survey, survey_person
from tests.media.two_people import FPS, SIZE, Frame, Person, scene

LEFT, RIGHT = 20, 270
HERS = (100, 150)


def i420(frame: Frame) -> Frame:
    return cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)


def followed(scenes: Sequence[Frame], frame: int = 0, place: tuple[int, int] = HERS) -> Survey:
    """Follow the person at a place of a frame."""
    tags, count = ColourTags(), len(scenes)
    source = SourceVideo(Path("v"), "", 0, *SIZE, Fraction(FPS), count, count / FPS, tags)
    picture = Picture(*SIZE, *SIZE, 0, 0, None, tags)

    def read(start: int, end: int) -> Iterator[Frame]:
        yield from map(i420, scenes[start:end])

    return survey_person(read, source, picture, FaceAtPoint(place, frame), range(count))  # type: ignore[arg-type]


def halves(found: Survey, count: int) -> list[str | None]:
    assert found.track is not None
    boxes = [found.track.at(number) for number in range(count)]
    return [box and ("left" if box.middle[0] < SIZE[0] / 2 else "right") for box in boxes]


def look(picture: Frame) -> np.ndarray:
    [(_, face)] = shared_mesh().all_faces(picture)
    return describe(picture, face.points)


def test_a_face_looks_like_itself_in_other_light_and_size_and_unlike_another() -> None:
    her = look(scene(Person("woman", 100)))
    dark = cv2.convertScaleAbs(scene(Person("woman", 100)), alpha=0.6)
    for other in (dark, scene(Person("woman", 200, 90, 110))):
        assert likeness(her, look(other)) > ALIKE + 0.1
    assert likeness(her, look(scene(Person("man", 100)))) < ALIKE - 0.2


def test_a_cut_is_noticed_and_a_slow_movement_is_not() -> None:
    cuts = CutFinder()
    walk = [i420(scene(Person("woman", 40 + 2 * n))) for n in range(10)]
    assert [cuts.is_cut(frame) for frame in walk] == [False] * 10
    assert cuts.is_cut(i420(scene(Person("man", 58))))


def test_somebody_else_at_the_same_place_is_not_the_person() -> None:
    """The pictures are alike but for the face, and nobody moves."""
    scenes = [scene(Person("woman", LEFT))] * 7 + [scene(Person("man", LEFT))] * 9
    assert halves(followed(scenes), 16) == ["left"] * 7 + [None] * 9


def test_a_face_that_fades_into_another_ends_before_it_is_the_other() -> None:
    """There is no frame at which the picture changes suddenly."""
    her, him = scene(Person("woman", LEFT)), scene(Person("man", LEFT))
    fade = [cv2.addWeighted(her, 1 - n / 40, him, n / 40, 0) for n in range(41)]
    found = halves(followed([her] * 5 + fade + [him] * 10), 56)
    assert found[:15] == ["left"] * 15 and found[38:] == [None] * 18


def test_a_flash_does_not_end_a_shot() -> None:
    still = scene(Person("woman", LEFT), Person("man", RIGHT))
    flash = np.clip(still.astype(int) + 90, 0, 255).astype(np.uint8)
    assert halves(followed([still] * 9 + [flash] + [still] * 9), 19) == ["left"] * 19


def test_a_face_that_jumps_is_followed_within_a_shot() -> None:
    """It moves by more than its width from one sample to the next."""
    scenes = [scene(Person("woman", LEFT + 32 * n)) for n in range(9)]
    found = followed(scenes)
    assert found.track is not None and found.warnings == ()
    for number in range(9):
        box = found.track.at(number)
        assert box is not None and abs(box.middle[0] - (105 + 32 * number)) < 25


def test_a_face_that_only_a_closer_look_finds_can_be_chosen_and_followed() -> None:
    """Beside a large face, the whole frame shows her too small; the point says where to look."""
    scenes = [scene(Person("man", RIGHT), Person("woman", 60 + n, 110, 36)) for n in range(20)]
    boxes = shared_mesh().faces(scenes[0])
    assert [box.middle[0] > SIZE[0] / 2 for box in boxes] == [True]
    found = followed(scenes, place=(77, 131))
    assert halves(found, 20) == ["left"] * 20
    assert found.track is not None
    last = found.track.at(19)
    assert last is not None and abs(last.middle[0] - 96) < 6


@pytest.mark.parametrize("frame", [0, 30])
def test_the_frame_of_the_choice_does_not_decide_where_a_person_is(frame: int) -> None:
    together = scene(Person("woman", LEFT), Person("man", RIGHT))
    swapped = scene(Person("man", LEFT), Person("woman", RIGHT))
    found = halves(followed([together] * 11 + [swapped] * 13 + [together] * 9, frame), 33)
    assert found == ["left"] * 11 + ["right"] * 13 + ["left"] * 9


def test_a_video_of_nothing_but_cuts_takes_bounded_memory() -> None:
    """Every frame begins tracklets; the chosen one is kept however short it is."""
    places = [(LEFT, RIGHT), (120, 300)]
    scenes = [
        scene(Person("woman", places[n % 2][0], 20 + 40 * (n % 3)), Person("man", places[n % 2][1]))
        for n in range(30)
    ]
    tags = ColourTags()
    picture = Picture(*SIZE, *SIZE, 0, 0, None, tags)
    finder = TrackletFinder(shared_mesh(), picture, Pace(4, 25), 0, Box(*HERS, *HERS), most=6)
    found = finder.run(map(i420, scenes))
    [(_, chosen)] = [each for each in finder.at_wanted if each[0].x0 < 200]
    assert len(found) <= 6 + 2 and chosen in found
