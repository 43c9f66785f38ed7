"""SIGKILL in the middle of a job costs a segment, not the job."""

import contextlib

import numpy as np
import pytest

from tests.decoding import frames_of
from tests.playing import link_to, played
from tests.serve.running import LOSSLESS, RunningApp
from tests.waiting import until

CASES = ("undisturbed", "Preprocessor", "Generator-cpu", "Finisher", "Ingress")


def media(clip, speech, case: str = "undisturbed") -> dict[str, object]:
    """Return a job of its own avatar, which an option that this engine ignores sees to."""
    return {
        "video_url": clip(frames=100).as_uri(),
        "audio_url": speech(20.0).as_uri(),
        "params": {**LOSSLESS, "left_cheek_width": CASES.index(case)},
    }


@pytest.fixture(scope="module")
def undisturbed(shared_app, clip, speech, tmp_path_factory) -> np.ndarray:
    """The frames of the job when nothing dies."""
    answer = shared_app.generate(musetalk_job_id="undisturbed", **media(clip, speech))
    assert answer.status_code == 200, answer.text
    return frames_of(shared_app.output(answer.json(), tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.slow  # what is left in `make test` kills the ingress and with it every call
@pytest.mark.parametrize("deployment", ["Preprocessor", "Generator-cpu", "Finisher"])
def test_a_replica_that_dies_costs_no_frame(app, clip, speech, tmp_path, deployment, undisturbed):
    job_id = f"killed-{deployment}"
    created = app.client.post(
        "/v1/avatar/jobs", json={"musetalk_job_id": job_id, **media(clip, speech, deployment)}
    )
    assert created.status_code == 202
    app.wait_drawn(job_id)
    with contextlib.ExitStack() as stack:
        if deployment == "Generator-cpu":
            # Between two segments nothing is lost with it, so it is stopped until it has one.
            app.wait_drawn(job_id, frames=100)  # both blocks of the video are encoded
            stack.enter_context(app.drawing_stopped())
            until(lambda: frames_in_flight(app) > 0, "nothing is handed to the Generator")
        app.kill(deployment)
    job = app.wait_for(job_id, "succeeded", "failed")
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
    assert np.array_equal(frames_of(app.output(job, tmp_path)), undisturbed)
    receipt = job["metrics"]["receipt"]
    assert receipt["frames"] == len(undisturbed)  # however many frames were drawn in vain
    [pool] = receipt["pools"]
    paid_s = pool["work_s"] + pool["idle_s"] + pool["lost_s"]
    assert receipt["paid_s"] == pytest.approx(paid_s, abs=0.002)
    if deployment == "Generator-cpu":
        assert receipt["retries"]["segments"] >= 1 and pool["lost_s"] > 0


def frames_in_flight(app: RunningApp) -> int:
    """Return how many frames the Generator draws, or would if it were not stopped."""
    [pool] = app.client.get("/health").json()["pools"]
    frames: int = pool["frames_in_flight"]
    return frames


def test_an_ingress_that_dies_resumes_its_jobs(app, clip, speech, tmp_path, undisturbed):
    body = {"musetalk_job_id": "killed-ingress", **media(clip, speech, "Ingress")}
    assert app.client.post("/v1/avatar/jobs", json=body).status_code == 202
    early = link_to(app, "killed-ingress")
    app.kill("Ingress")
    app.wait_ready()
    job = app.wait_for("killed-ingress", "succeeded", "failed")
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    video = app.output(job, tmp_path)
    assert np.array_equal(frames_of(video), undisturbed)
    # Who watched is told that this stream is over, and the new attempt has one of its own.
    gone = app.client.get(early)
    assert (gone.status_code, gone.json()["code"]) == (410, "stream_gone")
    assert played(job["stream_url"]) == played(str(video))
