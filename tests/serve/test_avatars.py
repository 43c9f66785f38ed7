"""A second job with the same video: nothing of its avatar is made again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ClipFactory, SpeechFactory
from tests.decoding import frames_of
from tests.serve.running import LOSSLESS, RunningApp


def stages(answer: dict[str, Any]) -> set[str]:
    """Return the names of the stages that a job went through."""
    return set(answer["metrics"]["stage_times"])


def job(app: RunningApp, job_id: str, video: Path, audio: Path, **params: Any) -> dict[str, Any]:
    response = app.generate(
        musetalk_job_id=job_id,
        video_url=video.as_uri(),
        audio_url=audio.as_uri(),
        params={**LOSSLESS, **params},
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def frames(app: RunningApp, answer: dict[str, Any], folder: Path) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    return frames_of(app.output(answer, folder))


def blocks_of(app: RunningApp) -> set[Path]:
    return set((app.folder / "state" / "avatars").rglob("*.block"))


def test_a_second_job_with_the_same_video_makes_nothing_of_its_avatar(
    app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, audio = clip(frames=60, faceless=frozenset({20})), speech(3.0)  # two blocks, and back
    first = job(app, "avatar-first", video, audio)
    assert {"prepare", "validation"} <= stages(first) and "load" not in stages(first)
    second = job(app, "avatar-second", video, audio)
    assert "prepare" not in stages(second) and "load" in stages(second)
    made = frames(app, first, tmp_path / "1")
    assert len(made) == 75
    np.testing.assert_array_equal(frames(app, second, tmp_path / "2"), made)


def test_damaged_blocks_are_made_again(
    app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, audio = clip(frames=22), speech(0.8)
    before = blocks_of(app)
    first = job(app, "damage-first", video, audio)
    job(app, "damage-second", video, audio)  # it has waited until the block was kept
    [block] = blocks_of(app) - before
    block.write_bytes(block.read_bytes()[:-1] + b"\x07")
    third = job(app, "damage-third", video, audio)
    assert "prepare" in stages(third)
    fourth = job(app, "damage-fourth", video, audio)
    assert "prepare" not in stages(fourth)
    made = frames(app, first, tmp_path / "1")
    for number, answer in enumerate((third, fourth)):
        np.testing.assert_array_equal(frames(app, answer, tmp_path / f"{number}"), made)


def test_two_jobs_at_once_make_a_block_once(
    app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, audio = clip(frames=41), speech(1.5)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda n: job(app, f"at-once-{n}", video, audio), range(2)))
    assert ["prepare" in stages(each) for each in both].count(True) == 1
    one, other = (frames(app, each, tmp_path / f"{n}") for n, each in enumerate(both))
    np.testing.assert_array_equal(one, other)


def test_other_sounds_and_encodings_use_the_avatar_and_other_boxes_do_not(
    app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    video = clip(frames=23)
    job(app, "options-first", video, speech(0.92))
    longer = job(app, "options-longer", video, speech(1.5), crf=10, blur=0.1)
    assert "prepare" not in stages(longer)
    other = job(app, "options-other", video, speech(0.92), extra_margin=20)
    assert "prepare" in stages(other)


def test_an_avatar_is_prepared_ahead_and_named_in_a_job(
    app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, audio = clip(frames=64), speech(1.2)
    answer = app.client.post("/v1/avatars", json={"video_url": video.as_uri()})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    ended = app.wait_for(job_id, "succeeded", "failed")
    assert ended["status"] == "succeeded", ended
    assert (ended["progress"]["frames_done"], ended["progress"]["frames_total"]) == (64, 64)
    avatar_id = ended["metrics"]["avatar_id"]
    assert ended["output_url"] == f"/v1/avatars/{avatar_id}"
    avatar = app.client.get(ended["output_url"]).json()
    assert (avatar["prepared_frames"], avatar["frames"], avatar["has_video"]) == (64, 64, True)

    body = {"avatar_id": avatar_id, "audio_url": audio.as_uri(), "params": LOSSLESS}
    response = app.generate(musetalk_job_id="names-avatar", **body)
    assert response.status_code == 200, response.text
    assert "prepare" not in stages(response.json())
    named = frames(app, response.json(), tmp_path / "1")
    # An option that this engine ignores: the same picture of another avatar, made for 30 frames.
    other = job(app, "names-video", video, audio, left_cheek_width=91)
    assert "prepare" in stages(other)
    np.testing.assert_array_equal(named, frames(app, other, tmp_path / "2"))

    assert app.client.delete(f"/v1/avatars/{avatar_id}").status_code == 200
    assert app.generate(musetalk_job_id="names-nothing", **body).status_code == 404
