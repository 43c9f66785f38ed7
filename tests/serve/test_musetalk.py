"""The MuseTalk engine in the graph: the same frames as in one process."""

import numpy as np
import pytest

from tests.decoding import frames_of
from tests.serve.running import LOSSLESS, running_app

pytestmark = pytest.mark.slow  # an application of its own


@pytest.fixture(scope="module")
def app(seeded_weights, tmp_path_factory, private_temp):
    """`engine: auto` where weights are."""
    args = {"engine": "auto", "models_dir": str(seeded_weights), "landmarks": "mesh"}
    args["avatars"] = {"max_gb": 1}
    with running_app(tmp_path_factory.mktemp("musetalk"), **args) as app:
        yield app


def test_a_served_job_equals_the_one_process_pipeline(app, seeded_weights, clip, speech, tmp_path):
    from musetalk_pipeline.engines import make_audio_encoder, make_engine
    from musetalk_pipeline.faces.mesh import MeshDetector
    from musetalk_pipeline.options import EncodeOptions, JobOptions
    from musetalk_pipeline.pipeline import Tools, run

    assert app.client.get("/health").json()["engine"] == "musetalk"
    video, audio = clip(frames=7, faceless=frozenset({3})), speech(0.4)
    answer = app.generate(
        musetalk_job_id="tiny",
        video_url=video.as_uri(),
        audio_url=audio.as_uri(),
        params=LOSSLESS,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["metrics"]["engine"] == "musetalk"
    assert answer.json()["metrics"]["model_version"] == "v15"

    alone = tmp_path / "alone.mp4"
    tools = Tools(
        MeshDetector(),
        make_engine("musetalk", seeded_weights, device="cpu"),
        make_audio_encoder("musetalk", seeded_weights),
    )
    run(video, audio, alone, JobOptions(encode=EncodeOptions(**LOSSLESS)), tools)
    served = frames_of(app.output(answer.json(), tmp_path))
    assert len(served) == 10
    assert np.array_equal(served, frames_of(alone))


def test_a_second_job_loads_latents_and_masks(app, clip, speech, tmp_path):
    """A job of another length, so that the video is also shown backwards."""
    video = clip(frames=9, faceless=frozenset({4}))
    made = []
    for name, seconds in (("first", 0.6), ("second", 0.6), ("longer", 0.8)):
        answer = app.generate(
            musetalk_job_id=f"avatar-{name}",
            video_url=video.as_uri(),
            audio_url=speech(seconds).as_uri(),
            params=LOSSLESS,
        )
        assert answer.status_code == 200, answer.text
        stages = answer.json()["metrics"]["stage_times"]
        assert ("prepare" in stages, "load" in stages) == (name == "first", name != "first")
        (tmp_path / name).mkdir()
        made.append(frames_of(app.output(answer.json(), tmp_path / name)))
    assert len(made[0]) == 15
    assert np.array_equal(made[0], made[1])
    assert len(made[2]) == 20
    # The first frame without a face is what the video itself shows.
    assert np.array_equal(made[0][4], made[2][4])


def test_options_of_the_request_reach_the_engine(app, clip, speech, tmp_path):
    made = []
    for mode in ("jaw", "raw"):
        answer = app.generate(
            musetalk_job_id=f"mode-{mode}",
            video_url=clip(frames=2).as_uri(),
            audio_url=speech(0.2).as_uri(),
            params={"parsing_mode": mode},
        )
        assert answer.status_code == 200, answer.text
        (tmp_path / mode).mkdir()
        made.append(frames_of(app.output(answer.json(), tmp_path / mode)))
    assert not np.array_equal(*made)
