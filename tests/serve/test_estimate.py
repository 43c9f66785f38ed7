"""Estimates of a running application, beside the jobs that they are learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import RunningApp
from tests.waiting import until


def test_an_estimate_has_the_size_of_the_result_and_learns_from_it(
    app: RunningApp, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    """The fixture checks that no file of an estimate is left behind."""
    inputs = {
        "video_url": clip().as_uri(),
        "audio_url": speech(0.8).as_uri(),
        "resolution": "200x100",
        "params": {"fps": 20.0},
    }

    def ids() -> list[str]:
        return [one["id"] for one in app.client.get("/v1/avatar/jobs").json()["jobs"]]

    jobs = ids()
    before = app.client.post("/v1/estimate", json=inputs).json()
    assert ids() == jobs
    done = app.generate(musetalk_job_id="estimated", **inputs)
    assert done.status_code == 200
    metrics = done.json()["metrics"]
    for name in ("width", "height", "fps"):
        assert metrics[name] == before[name]
    assert before["frames"] == metrics["receipt"]["frames"] == 16
    assert before["duration_s"] == metrics["receipt"]["finished_s"] == 0.8

    after = app.client.post("/v1/estimate", json=inputs).json()
    assert (after["basis"]["speeds"], after["usd"]) == ("receipts", None)
    assert after["basis"]["jobs"] >= 1
    assert [(pool["pool"], pool["running"]) for pool in after["basis"]["pools"]] == [("cpu", 1)]
    assert after["seconds"] > 0


def test_an_estimate_says_what_a_job_with_a_kept_avatar_will_load(
    app: RunningApp, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    """The other estimate is of the same job with another avatar, as if nothing were kept."""
    inputs = {"video_url": clip(frames=51).as_uri(), "audio_url": speech(2.04).as_uri()}

    def estimate(**params: int) -> dict[str, Any]:
        sent = {**inputs, "params": params}
        made: dict[str, Any] = app.client.post("/v1/estimate", json=sent).json()
        return made

    def receipt(job_id: str) -> dict[str, Any]:
        answer = app.generate(musetalk_job_id=job_id, **inputs)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["metrics"]["receipt"]
        return found

    first = receipt("estimate-new")
    assert first["stage_frames"]["prepare"] == first["faces"] == 51
    # Blocks are kept behind the job that makes them.
    kept = until(
        lambda: made if (made := estimate())["basis"]["work"]["kept_frames"] == 51 else None,
        "the avatar is not kept",
        60.0,
    )
    new = estimate(extra_margin=21)
    work = {"prepared_frames": 51, "kept_frames": 0, "drawn_frames": 51, "followed_frames": 0}
    assert new["basis"]["work"] == work
    assert kept["basis"]["work"] == work | {"prepared_frames": 0, "kept_frames": 51}
    assert kept["seconds"] <= new["seconds"]
    second = receipt("estimate-kept")
    assert second["stage_frames"]["load"] == 51 and "prepare" not in second["stage_frames"]


@pytest.mark.parametrize(
    ("name", "url", "code"),
    [
        ("video", "file:///etc/passwd", "source_refused"),
        ("audio", "http://127.0.0.1:9/a.wav", "download_failed"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused_as_in_a_job(
    app: RunningApp, clip: Callable[..., Path], name: str, url: str, code: str
) -> None:
    inputs = {"video_url": clip().as_uri(), "audio_url": clip().as_uri(), f"{name}_url": url}
    answer = app.client.post("/v1/estimate", json=inputs)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["input"] == name
