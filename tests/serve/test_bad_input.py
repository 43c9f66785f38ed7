"""Bad input gets 422, the right stage and a sentence, and leaves nothing; odd input works."""

import itertools
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from tests.serve.running import probe

NUMBERS = itertools.count()


@pytest.fixture
def app(app, clip, speech):
    """The application, which after each of these inputs still does a good job."""
    yield app
    response = app.generate(
        musetalk_job_id=f"next-good-{next(NUMBERS)}",
        video_url=clip(frames=4).as_uri(),
        audio_url=speech(0.2).as_uri(),
    )
    assert response.status_code == 200, response.text


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def bad_video(kind: str, clip, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    good = clip()
    if kind == "text":
        path.write_text("This is no video. " * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif kind == "sound_only":
        ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path)
    elif kind == "no_face":
        ffmpeg("-f", "lavfi", "-i", "testsrc2=d=1:s=320x240:r=25", "-pix_fmt", "yuv420p", path)
    elif kind == "huge_picture":
        ffmpeg("-f", "lavfi", "-i", "color=d=0.2:s=9000x64", "-pix_fmt", "yuv420p", path)
    elif kind == "ten_hours":
        ffmpeg("-f", "lavfi", "-i", "color=d=36000:s=64x64:r=1/60", "-pix_fmt", "yuv420p", path)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n" + "#\n" * 600)
    return path


@pytest.mark.parametrize(
    ("kind", "stage", "code"),
    [
        ("text", "validation", "invalid_video"),
        ("empty", "download", "download_failed"),
        ("truncated", "validation", "invalid_video"),
        ("sound_only", "validation", "invalid_video"),
        ("no_face", "preprocessing", "no_face"),
        ("huge_picture", "validation", "media_too_large"),
        ("ten_hours", "validation", "media_too_large"),
        ("playlist", "validation", "invalid_video"),
    ],
)
def test_a_bad_video_is_the_callers(app, clip, speech, tmp_path, kind, stage, code):
    video = bad_video(kind, clip, tmp_path)
    job_id = f"video-{kind}"
    response = app.generate(
        musetalk_job_id=job_id, video_url=video.as_uri(), audio_url=speech(0.6).as_uri()
    )
    body = response.json()
    assert (response.status_code, body["stage"], body["code"]) == (422, stage, code), body
    assert (body["status"], body["error_type"], body["retryable"]) == (
        "failed", "media_error", False,
    )  # fmt: skip
    assert "stack_trace" not in body
    # Mends 1.17 and 2.6: what was done until then, which input it is, and what to do.
    assert "download" in body["stage_times"]
    assert ("validation" in body["stage_times"]) == (stage != "download")
    if stage != "download":
        assert body["input"] == "video" and body["hint"]
    assert str(tmp_path) not in body["error_message"]
    assert not (app.folder / "results" / f"{job_id}.mp4").exists()


@pytest.mark.parametrize(
    ("kind", "stage", "code"),
    [
        ("text", "validation", "invalid_audio"),
        ("picture", "validation", "invalid_audio"),
        ("too_short", "validation", "audio_too_short"),
    ],
)
def test_bad_audio_is_the_callers(app, clip, tmp_path, kind, stage, code):
    audio = tmp_path / f"{kind}.wav"
    if kind == "text":
        audio.write_text("no sound " * 200)
    elif kind == "picture":
        cv2.imwrite(str(audio.with_suffix(".png")), np.zeros((100, 100, 3), np.uint8))
        audio.write_bytes(audio.with_suffix(".png").read_bytes() + b"\0" * 1000)
    else:
        soundfile.write(audio, np.zeros(1100, np.float32), 16_000)  # 69 ms
    response = app.generate(
        musetalk_job_id=f"audio-{kind}", video_url=clip().as_uri(), audio_url=audio.as_uri()
    )
    body = response.json()
    assert (response.status_code, body["stage"], body["code"]) == (422, stage, code), body
    assert body["input"] == "audio" and body["hint"] and "download" in body["stage_times"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1/v.mp4", "download_failed"),  # allowed host, nobody listens
        ("http://nowhere.invalid/v.mp4", "download_failed"),
        ("http://10.0.0.1/v.mp4", "source_refused"),
        ("http://169.254.169.254/latest/meta-data", "source_refused"),
        ("file:///etc/passwd", "source_refused"),
        ("ftp://host/v.mp4", "source_refused"),
    ],
)
def test_an_address_that_cannot_be_used_is_the_callers(app, speech, url, code):
    response = app.generate(
        musetalk_job_id=f"url-{url}", video_url=url, audio_url=speech(0.6).as_uri()
    )
    body = response.json()
    assert (response.status_code, body["stage"], body["code"]) == (422, "download", code), body


GENERATE, JOBS = "/generate", "/v1/avatar/jobs"


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (GENERATE, {"musetalk_job_id": ""}),
        (GENERATE, {"musetalk_job_id": None}),
        (GENERATE, {"video_url": 7}),
        # `/generate` takes the default for these, with a warning: docs/protocol.md §1.
        (JOBS, {"params": {"unknown": 1}}),
        (JOBS, {"params": {"crf": 99}}),
        (JOBS, {"params": "high"}),
        (JOBS, {"resolution": "7p"}),
        (JOBS, {"resolution": "100000x100000"}),
        (JOBS, {"aspect_ratio": "wide"}),
    ],
)
def test_a_request_that_says_nothing_useful_is_the_callers(app, clip, speech, path, change):
    good = {
        "musetalk_job_id": f"request-{change}",
        "video_url": clip().as_uri(),
        "audio_url": speech(0.6).as_uri(),
    }
    body = app.client.post(path, json=good | change)
    assert (body.status_code, body.json()["status"]) == (422, "failed"), body.text
    assert body.json()["stage"] == "validation"


@pytest.mark.parametrize("size", [100_000, 2 << 20])
def test_a_large_body_is_the_callers(app, size):
    """Mend 4.3: 413 (it was 422): nobody has parsed it. The client can read why."""
    response = app.client.post("/generate", content=b"[" * size)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 60_000, b'"' + b"x" * 60_000, b"\xff"])
def test_a_body_that_is_no_json_is_the_callers(app, raw):
    headers = {"Content-Type": "application/json"}
    response = app.client.post("/generate", content=raw, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("name", "fields", "frames"),
    [
        ("odd", {"width": 321, "height": 241, "ffmpeg_output": ("-pix_fmt", "yuv444p")}, 15),
        ("one_frame", {"frames": 1}, 15),
        ("turned", {"rotation": 90}, 15),
        ("variable_rate", {"is_variable_rate": True}, None),
    ],
)
def test_odd_videos_work(app, clip, speech, tmp_path, name, fields, frames):
    response = app.generate(
        musetalk_job_id=f"odd-{name}",
        video_url=clip(**fields).as_uri(),
        audio_url=speech(0.6).as_uri(),
    )
    assert response.status_code == 200, response.text
    video = probe(app.output(response.json(), tmp_path))["video"]
    assert (video["width"], video["height"]) == (320, 240)
    if frames is not None:
        assert int(video["nb_read_frames"]) == frames


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (96_000, 6)])
def test_odd_sounds_work(app, clip, speech, tmp_path, rate, channels):
    response = app.generate(
        musetalk_job_id=f"sound-{rate}",
        video_url=clip().as_uri(),
        audio_url=speech(1.0, rate, channels).as_uri(),
    )
    assert response.status_code == 200, response.text
    streams = probe(app.output(response.json(), tmp_path))
    assert abs(float(streams["audio"]["duration"]) - 1.0) <= 0.04
    assert streams["video"]["nb_read_frames"] == "25"


def test_any_job_id_becomes_a_file_that_can_be_fetched(app, clip, speech):
    response = app.generate(
        musetalk_job_id="../../after; rm -rf $HOME\n",
        video_url=clip().as_uri(),
        audio_url=speech(0.6).as_uri(),
    )
    assert response.status_code == 200
    assert app.client.get(response.json()["output_url"]).status_code == 200
