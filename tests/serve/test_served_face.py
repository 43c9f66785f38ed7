"""A request chooses whose mouth is redrawn, through the whole application."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.decoding import frames_of
from tests.media.two_people import FPS, Person, scene, write

LEFT, RIGHT = 20, 270
TOGETHER = scene(Person("woman", LEFT), Person("man", RIGHT))
SWAPPED = scene(Person("man", LEFT), Person("woman", RIGHT))
# A block is two seconds, so the second cut is in the second block.
SCENES = [TOGETHER] * 20 + [SWAPPED] * 35 + [TOGETHER] * 5


@pytest.fixture
def body(speech, tmp_path: Path) -> dict[str, str]:
    video = write(tmp_path / "people.mp4", SCENES)
    return {"video_url": video.as_uri(), "audio_url": speech(len(SCENES) / FPS).as_uri()}


def test_the_person_that_a_preview_shows_is_chosen_and_followed(app, body, tmp_path: Path) -> None:
    lossless = {"crf": 0, "preset": "ultrafast"}
    seen = app.client.post("/v1/avatar/preview", json=body).raise_for_status()
    boxes = [[int(n) for n in box.split(",")] for box in seen.headers["x-faces"].split(";")]
    assert len(boxes) == 2
    x0, y0, x1, y1 = min(boxes)  # hers, on the left
    frame = int(seen.headers["x-source-frame"])
    face = {"box": [x0, y0, x1 - x0, y1 - y0], "frame": frame}
    job = body | {"musetalk_job_id": "her", "params": {"face": face, **lossless}}

    chosen = app.client.post("/v1/avatar/preview", json=job).raise_for_status()
    assert int(chosen.headers["x-face-box"].split(",")[0]) < 240

    answer = app.client.post("/generate", json=job).raise_for_status().json()
    assert answer["warnings"] == []
    source = frames_of(Path(body["video_url"].removeprefix("file://")))
    made = frames_of(app.output(answer, tmp_path))
    differs = (source != made).any(axis=3)
    for number in range(len(SCENES)):
        is_left = not 20 <= number < 55
        assert differs[number, :, :240].any() == is_left
        assert differs[number, :, 240:].any() != is_left
    np.testing.assert_array_equal(source[:, :60], made[:, :60])


@pytest.mark.slow
@pytest.mark.parametrize("face", [{"point": [100, 150]}, "all"])
def test_what_was_prepared_of_a_choice_is_used_again(app, body, tmp_path: Path, face) -> None:
    """Blocks with several faces in a frame are kept too, and those of a person with their track."""
    made, stages = [], []
    for number in range(2):
        job = {"musetalk_job_id": f"again-{len(face)}-{number}", "params": {"face": face, "crf": 0}}
        answer = app.client.post("/generate", json=body | job).raise_for_status().json()
        stages.append(answer["metrics"]["stage_times"].keys())
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(frames_of(app.output(answer, folder)))
    assert "prepare" in stages[0] and "load" not in stages[0]
    assert "prepare" not in stages[1] and "load" in stages[1]
    np.testing.assert_array_equal(*made)
    source = frames_of(Path(body["video_url"].removeprefix("file://")))
    differs = (source != made[0]).any(axis=(1, 3))
    both = differs[:, :240].any(axis=1) & differs[:, 240:].any(axis=1)
    assert both.all() if face == "all" else not both.any()


def test_a_place_without_a_face_is_a_fault_of_the_request(app, body) -> None:
    job = body | {"musetalk_job_id": "nobody", "params": {"face": {"point": [5, 5]}}}
    answer = app.client.post("/generate", json=job)
    assert answer.status_code == 422
    told = answer.json()
    assert (told["code"], told["stage"]) == ("face_not_found", "preprocessing")
    assert "Two faces were found in that frame, at " in told["error_message"]
    assert told["details"]["faces"] == 2 and told["hint"]
