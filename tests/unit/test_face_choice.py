"""How the choice of a face is written, and where a followed face is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musetalk_pipeline.__main__ import _options, _parser
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.face_choice import FaceAtBox, FaceAtPoint, FaceChoice, read_face
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.track import Span, Track, straightened
from serve_app.contract.lenient import read_leniently
from serve_app.contract.requests import JobRequest, Params

REQUEST = {"musetalk_job_id": "a", "video_url": "http://a/v", "audio_url": "http://a/a"}
SPELLINGS: list[tuple[str, Any, FaceChoice]] = [
    ("largest", "largest", "largest"),
    ("all", "all", "all"),
    ("point:12,34.5@7", {"point": [12, 34.5], "frame": 7}, FaceAtPoint((12, 34.5), 7)),
    ("point:12,34", {"point": [12, 34]}, FaceAtPoint((12, 34), 0)),
    ("box:1,2,30,40@5", {"box": [1, 2, 30, 40], "frame": 5}, FaceAtBox((1, 2, 30, 40), 5)),
]


@pytest.mark.parametrize(("words", "param", "choice"), SPELLINGS)
def test_a_request_and_a_command_line_choose_the_same(
    words: str, param: Any, choice: FaceChoice
) -> None:
    assert read_face(words) == choice
    line = _parser().parse_args(["v.mp4", "a.wav", "--face", words])
    assert _options(line).face.face == choice
    request = JobRequest.model_validate(REQUEST | {"params": {"face": param}})
    assert request.options(JobOptions()).face.face == choice
    # As the registry keeps it and reads it again.
    again = JobRequest.model_validate_json(request.model_dump_json())
    assert again == request


@pytest.mark.parametrize(
    "wrong",
    [
        *("left", {}, {"point": [1]}, {"point": [1, 2], "frame": -1}, {"point": [1, "x"]}),
        *({"box": [1, 2, 0, 4]}, {"box": [1, 2, 3]}, {"point": [1, 2], "box": [1, 2, 3, 4]}),
        *({"point": [1, 2], "at": 3}, {"point": [float("inf"), 2]}, {"frame": 3}, [1, 2], 7),
    ],
)
def test_what_is_no_choice_is_refused_or_replaced_with_a_sentence(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"face": wrong})
    request, warnings = read_leniently(REQUEST | {"params": {"face": wrong}})
    assert request.options(JobOptions()) == JobOptions()
    assert len(warnings) == 1 and warnings[0].endswith("the default was used.")


@pytest.mark.parametrize(
    "wrong", ["", "left", "point:1", "point:1,2@x", "box:1,2,3@0", "point:a,b"]
)
def test_a_word_that_is_not_understood_is_refused_with_those_that_are(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="point:X,Y@FRAME"):
        read_face(wrong)
    with pytest.raises(SystemExit):
        _parser().parse_args(["v.mp4", "a.wav", "--face", wrong])
    assert "use largest, all, point:X,Y@FRAME" in capsys.readouterr().err


def test_a_face_between_two_places_is_on_the_line_between_them() -> None:
    span = Span(2, 30, (5, 15), (Box(0, 0, 10, 10), Box(100, 50, 120, 80)))
    track = Track((span, Span(40, 41, (40,), (Box(7, 7, 9, 9),))))
    assert track.at(2) == track.at(5) == Box(0, 0, 10, 10)
    assert track.at(10) == Box(50, 25, 65, 45)
    assert track.at(15) == track.at(29) == Box(100, 50, 120, 80)
    assert [track.at(frame) for frame in (0, 1, 30, 39, 41)] == [None] * 5
    assert track.at(40) == Box(7, 7, 9, 9)
    assert (track.frames_within(0, 50), track.frames_within(20, 41)) == (29, 11)


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=80))
def test_keys_that_are_left_out_follow_from_the_others(steps: list[int]) -> None:
    keys, x = [], 0
    for number, step in enumerate(steps):
        x += step if number % 3 == 0 else 0
        keys.append((number * 4, Box(x, 0, x + 100, 100)))
    kept = straightened(keys)
    assert kept[0] == keys[0] and kept[-1] == keys[-1]
    frames, boxes = zip(*kept, strict=True)
    span = Span(0, keys[-1][0] + 1, frames, boxes)
    assert all(abs(span.at(frame).x0 - box.x0) <= 5 for frame, box in keys)


def test_a_face_that_stays_where_it_is_takes_a_few_keys() -> None:
    keys = [(number, Box(5, 5, 50, 50)) for number in range(0, 4000, 4)]
    assert len(straightened(keys)) < 40
