"""Estimates of a running application, beside the jobs that they are learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.running import RunningApp


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
