"""A job whose spans speak, through the whole application: uploads by address, several segments."""

import numpy as np

from tests.decoding import frames_of
from tests.media.test_sync_modes import pitch, sound_of
from tests.serve.running import LOSSLESS, media_server


def test_spans_of_a_video_speak_and_the_rest_of_it_is_left_alone(app, clip, speech, tmp_path):
    """The sound of one span comes from an address of its own, whose signature is not shown. The
    result is so long that its sound is encoded beside the segments. The stream shows the same.
    """
    served = tmp_path / "served"
    served.mkdir()
    for name, path in (("v.mp4", clip(frames=140)), ("a.wav", speech(3.0)), ("b.wav", speech(2.0))):
        (served / name).write_bytes(path.read_bytes())
    with media_server(served) as base:
        segments = [
            {"start_s": 0.4, "end_s": 1.2, "audio": {"start_s": 0.5}},
            {"start_s": 2.4, "end_s": 3.6, "audio": {"url": f"{base}/b.wav?signature=planted"}},
        ]
        answer = app.generate(
            musetalk_job_id="spans",
            video_url=f"{base}/v.mp4",
            audio_url=f"{base}/a.wav",
            params={**LOSSLESS, "video_end_s": 5.4, "segments": segments},
        ).json()
        assert answer["status"] == "success", answer
        shown = app.job("spans")["input"]["params"]["segments"]
    assert shown[0]["audio"] == {"url": None, "start_s": 0.5, "end_s": None}
    assert "planted" not in str(shown) and shown[1]["audio"]["url"].endswith("/b.wav")
    before, after = frames_of(clip(frames=140)), frames_of(app.output(answer, tmp_path))
    assert len(after) == 135
    spoken = {*range(10, 30), *range(60, 90)}
    changed = {at for at, frame in enumerate(after) if not np.array_equal(frame, before[at])}
    assert changed <= spoken and len(changed) > 40
    sound = sound_of(app.output(answer, tmp_path))
    assert (pitch(sound, 0, 0.38), pitch(sound, 1.25, 2.35), pitch(sound, 3.65, 5.3)) == (0, 0, 0)
    loud = np.abs(sound[round(2.4 * 16_000) : round(3.6 * 16_000)]).max()
    assert loud > 0.05
    assert np.array_equal(frames_of(app.job("spans")["stream_url"]), after)
