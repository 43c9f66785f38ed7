"""POST /generate on a real Ray: the output is decoded and looked at."""

import hashlib
import json
import socket
import threading
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import av
import cv2
import httpx
import numpy as np
import pytest

from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.plan import count_output_frames, source_of
from tests.decoding import frames_of
from tests.described import Document
from tests.serve.running import LOSSLESS, media_server, probe

FRAME_S = 1 / 25


def uris(*paths: Path) -> dict[str, str]:
    return dict(zip(("video_url", "audio_url"), (path.as_uri() for path in paths), strict=True))


def test_audio_longer_than_the_video_runs_it_back_and_forth(app, clip, speech, tmp_path):
    video, audio = clip(frames=60), speech(6.0)
    response = app.generate(musetalk_job_id="long", **uris(video, audio))
    answer = response.json()
    assert (response.status_code, answer["status"], answer["musetalk_job_id"]) == (
        200, "success", "long",
    )  # fmt: skip

    path = app.output(answer, tmp_path)
    streams, shown = probe(path), frames_of(path)
    expected = count_output_frames(96_000, Fraction(25))
    assert len(shown) == expected == 150
    assert streams["video"]["avg_frame_rate"] == "25/1"
    picture_s, sound_s = (float(streams[kind]["duration"]) for kind in ("video", "audio"))
    assert abs(picture_s - sound_s) <= FRAME_S
    assert abs(sound_s - 6.0) <= FRAME_S

    source = frames_of(video)
    detector = MeshDetector()
    before = [source[source_of(index, len(source))] for index in range(expected)]
    outside = [outside_face(frame, detector) for frame in before]
    pairs = [(b[o], s[o]) for b, s, o in zip(before, shown, outside, strict=True)]
    # Over the clip, as PSNR of a video is meant; the worst frame shows that none is out of place.
    assert psnr(*(np.concatenate(side) for side in zip(*pairs, strict=True))) >= 40.0
    assert min(psnr(*pair) for pair in pairs) >= 37.0


def test_the_mouth_follows_the_loudness_of_the_speech(app, clip, speech, tmp_path):
    answer = app.generate(musetalk_job_id="mouth", **uris(clip(frames=100), speech(8.0))).json()
    opening = mouth_opening(frames_of(app.output(answer, tmp_path)))
    loudness = loudness_per_frame(speech(8.0), len(opening))
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.6


def test_the_mouth_is_still_in_silence(app, clip, speech, tmp_path):
    speaking = app.generate(musetalk_job_id="spoken", **uris(clip(), speech(2.0))).json()
    moving = np.std(mouth_opening(frames_of(app.output(speaking, tmp_path))))
    silent = app.generate(musetalk_job_id="silent", **uris(clip(), speech(2.0, silence=True)))
    still = np.std(mouth_opening(frames_of(app.output(silent.json(), tmp_path))))
    assert still < 0.004
    assert still < moving / 4


def test_audio_shorter_than_the_video_cuts_it(app, clip, speech, tmp_path):
    answer = app.generate(musetalk_job_id="short", **uris(clip(frames=60), speech(1.0))).json()
    streams = probe(app.output(answer, tmp_path))
    assert streams["video"]["nb_read_frames"] == "25"
    assert abs(float(streams["audio"]["duration"]) - 1.0) <= FRAME_S


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"resolution": "180p"}, (240, 180)),
        ({"resolution": "200x300"}, (200, 300)),
        ({"resolution": "180p", "aspect_ratio": "9:16"}, (180, 320)),
        ({"resolution": "180p", "aspect_ratio": "9:16", "params": {"fit": "crop"}}, (180, 320)),
        ({"aspect_ratio": "source", "resolution": "source"}, (320, 240)),
    ],
)
def test_size_and_aspect_are_as_asked(app, clip, speech, tmp_path, asked, size):
    job_id = hashlib.sha1(json.dumps(asked).encode()).hexdigest()
    response = app.generate(musetalk_job_id=job_id, **uris(clip(), speech(0.6)), **asked)
    assert response.status_code == 200, response.text
    video = probe(app.output(response.json(), tmp_path))["video"]
    assert (video["width"], video["height"], video["pix_fmt"]) == (*size, "yuv420p")


def test_the_answer_has_every_field_of_the_contract(app, clip, speech):
    document = Document(app.client.get("/openapi.json").json())
    response = app.generate(musetalk_job_id="fields", **uris(clip(), speech(0.6)))
    answer = response.json()
    for path in ("/v1/avatar/jobs/fields", "/v1/avatar/jobs", "/health", "/v1/avatars", "/hc"):
        document.check(app.client.get(path))
    document.check(response)
    assert len(document.checked) == 6
    fields = {"status", "output_url", "musetalk_job_id", "metrics", "error", "warnings"}
    assert set(answer) == fields and answer["error"] is None
    metrics = answer["metrics"]
    assert {"GENERATION_TIME_SEC", "SCRIPT_WALL_TIME_SEC", "PEAK_VRAM_MIB", "PEAK_RAM_KB",
            "gpu_class", "stage_times", "total_time"} <= set(metrics)  # fmt: skip
    assert {"download", "validation", "inference", "upload"} <= set(metrics["stage_times"])
    assert metrics["engine"] == "warp"
    sidecar = app.client.get(answer["output_url"].replace(".mp4", ".json")).json()
    assert sidecar["source_sha256"] == hashlib.sha256(clip().read_bytes()).hexdigest()
    assert sidecar["engine"] == "warp"
    assert sidecar["musetalk_job_id"] == "fields"


def test_the_receipt_counts_every_frame_of_the_plan(app, clip, speech):
    video = clip(frames=59)  # no other test has it, so nothing of its avatar is kept
    answer = app.generate(musetalk_job_id="receipt", **uris(video, speech(6.0))).json()
    metrics = answer["metrics"]
    receipt = metrics["receipt"]
    assert receipt["frames"] == 150 and receipt["finished_s"] == 6.0
    assert receipt["frames_by_gpu_class"] == {metrics["gpu_class"]: 150}
    [pool] = receipt["pools"]
    assert (pool["pool"], pool["frames"], pool["lost_s"]) == ("cpu", 150, 0.0)
    # The engine's work in the receipt is that of the stages.
    assert pool["work_s"] == pytest.approx(metrics["stage_times"]["inference"], abs=0.002)
    assert receipt["paid_s"] == pytest.approx(pool["work_s"] + pool["idle_s"], abs=0.002)
    assert 0.0 < receipt["model_share"] <= 1.0
    assert receipt["stage_s"] == metrics["stage_times"]
    assert receipt["retries"] == {"segments": 0, "frames": 0}
    assert receipt["stage_frames"] == {
        "prepare": 59, "encode": 59, "listen": 150, "generate": 150, "compose": 150,
    }  # fmt: skip
    assert receipt["faces"] == 150
    assert 0.0 < pool["encode_s"] < pool["work_s"]
    assert receipt["usd"] is None  # the configuration has no prices
    assert app.job("receipt")["metrics"]["receipt"] == receipt
    sidecar = app.client.get(answer["output_url"].replace(".mp4", ".json")).json()
    counts = ("frames", "frames_by_gpu_class", "stage_frames", "faces")
    for name in (*counts, "pools", "waiting_s", "retries"):
        assert sidecar["receipt"][name] == receipt[name]


def test_files_are_served_in_ranges(app, clip, speech):
    url = app.generate(musetalk_job_id="range", **uris(clip(), speech(0.6))).json()["output_url"]
    whole = app.client.get(url).content
    part = app.client.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    path = urlsplit(url).path
    assert app.client.get(path.replace("range.mp4", "..%2f..%2flog")).status_code == 404


def test_the_output_equals_that_of_one_process(app, clip, speech, tmp_path):
    from musetalk_pipeline.engines.warp.engine import WarpAudioEncoder, WarpEngine
    from musetalk_pipeline.options import EncodeOptions, JobOptions
    from musetalk_pipeline.pipeline import Tools, run

    video, audio = clip(frames=60), speech(3.0)
    answer = app.generate(musetalk_job_id="same", **uris(video, audio), params=LOSSLESS).json()
    options = JobOptions(encode=EncodeOptions(**LOSSLESS))
    alone = tmp_path / "alone.mp4"
    run(video, audio, alone, options, Tools(MeshDetector(), WarpEngine(), WarpAudioEncoder()))
    assert np.array_equal(frames_of(app.output(answer, tmp_path)), frames_of(alone))


def test_the_same_job_again_gives_the_same_answer_and_other_content_is_refused(app, clip, speech):
    body = {"musetalk_job_id": "again", **uris(clip(), speech(0.6))}
    first, second = app.generate(**body), app.generate(**body)
    assert first.json() == second.json()
    assert app.job("again")["attempt"] == 1
    refused = app.generate(**body | {"resolution": "100p"})
    assert (refused.status_code, refused.json()["code"]) == (409, "job_conflict")


def test_the_same_job_posted_while_it_runs_is_done_once(app, clip, speech):
    body = {"musetalk_job_id": "joined", **uris(clip(frames=60), speech(4.0))}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(app.generate(**body))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert app.job("joined")["attempt"] == 1


def test_two_jobs_at_once_do_not_mix(app, clip, speech, tmp_path):
    """Mend 0. Each job's video is held back until the other's is asked for, so both run at once
    however long a slot takes to begin: one whose call Ray has lost begins after ten seconds.
    """
    jobs = {
        "one": (clip(frames=50), speech(6.0), 150),
        "two": (clip(frames=50, width=200), speech(8.0), 200),
    }
    for name, (video, sound, _) in jobs.items():
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
        (tmp_path / f"{name}.wav").write_bytes(sound.read_bytes())
    results: dict[str, httpx.Response] = {}

    def do(base: str, name: str) -> None:
        media = {"video_url": f"{base}/{name}.mp4", "audio_url": f"{base}/{name}.wav"}
        results[name] = app.generate(musetalk_job_id=name, **media)

    both_asked = threading.Barrier(2)
    with media_server(tmp_path, lambda path: path.endswith(".mp4") and both_asked.wait(60)) as base:
        threads = [threading.Thread(target=do, args=(base, name)) for name in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(180)
    assert not both_asked.broken
    for name, (video, _, frames) in jobs.items():
        (tmp_path / name).mkdir()
        shown = frames_of(app.output(results[name].json(), tmp_path / name))
        assert len(shown) == frames
        assert shown.shape[1:] == frames_of(video).shape[1:]


def test_a_client_that_goes_away_ends_its_job(app, clip, speech):
    body = {"musetalk_job_id": "gone", **uris(clip(frames=100), speech(60.0))}
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: {app.client.base_url.host}:{app.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((app.client.base_url.host, app.port)) as client:
        client.sendall(head.encode() + content)
        app.wait_drawn("gone")
    job = app.wait_for("gone", "cancelled")
    assert job["output_url"] is None
    assert not (app.folder / "results" / "gone.mp4").exists()


def test_media_come_over_http_too(app, clip, speech, tmp_path):
    for source, name in ((clip(), "v.mp4"), (speech(0.6), "a.wav")):
        (tmp_path / name).write_bytes(source.read_bytes())
    with media_server(tmp_path) as base:
        answer = app.generate(
            musetalk_job_id="http", video_url=f"{base}/v.mp4?sig=s3cret", audio_url=f"{base}/a.wav"
        )
    assert answer.status_code == 200
    assert "s3cret" not in app.client.get("/v1/avatar/jobs/http").text
    assert "s3cret" not in (app.folder / "log").read_text()


def test_every_event_of_a_job_goes_forward(app, clip, speech):
    """Mends 0 and 2.11: every change of phase is an event, however short the phase was."""
    body = {"musetalk_job_id": "events", **uris(clip(frames=60), speech(3.0))}
    created = app.client.post("/v1/avatar/jobs", json=body)
    assert created.status_code == 202
    seen = []
    with app.client.stream("GET", "/v1/avatar/jobs/events/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    fractions = [event["progress"]["fraction"] for event in seen]
    assert fractions == sorted(fractions)
    assert seen[-1]["status"] == "succeeded"
    assert seen[-1]["progress"]["frames_done"] == seen[-1]["progress"]["frames_total"] == 75
    phases = [event["progress"]["phase"] for event in seen]
    order = ["downloading", "validating", "inferring", "encoding", "uploading", "completed"]
    assert [phase for phase, _ in groupby(phases) if phase != "queued"] == order
    for event in seen:
        progress = event["progress"]
        if progress["phase"] == "encoding":  # drawing has ended
            assert progress["frames_done"] == progress["frames_total"] == 75
        if progress["phase"] in ("queued", "downloading", "validating"):
            assert progress["eta_s"] is None
    # Who comes late is told as well, and who comes back is told what is new.
    with app.client.stream("GET", "/v1/avatar/jobs/events/events") as stream:
        lines = list(stream.iter_lines())
    ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    again = [json.loads(line[6:])["progress"]["phase"] for line in lines if line[:6] == "data: "]
    assert (len(ids), again) == (5, order)
    last_seen = {"Last-Event-ID": ids[2]}
    with app.client.stream("GET", "/v1/avatar/jobs/events/events", headers=last_seen) as stream:
        lines = list(stream.iter_lines())
    assert [line.removeprefix("id: ") for line in lines if line.startswith("id: ")] == ids[3:]


def test_drawn_frames_count_before_any_is_encoded(app, clip, speech):
    """Mend 2.11: that results exist is noticed without fetching them; here nothing can encode."""
    # Two segments: as many as may be in flight although none of them is encoded.
    body = {"musetalk_job_id": "drawn", **uris(clip(frames=60), speech(2.4))}
    [finisher] = app.replicas("Finisher")
    finisher.suspend()
    try:
        assert app.client.post("/v1/avatar/jobs", json=body).status_code == 202
        app.wait_drawn("drawn", frames=60)
        progress = app.job("drawn")["progress"]
    finally:
        finisher.resume()
    assert (progress["phase"], progress["frames_done"]) == ("encoding", 60)
    # All is prepared and drawn (0.8 of the way from 5 to 95 %), nothing is encoded.
    assert progress["fraction"] == pytest.approx(0.77)
    assert app.wait_for("drawn", "succeeded", "failed")["status"] == "succeeded"


def test_a_preflight_for_a_configured_origin_is_answered_in_the_proxy(app):
    asked = {"Access-Control-Request-Method": "POST"}
    preflight = app.client.options("/generate", headers=asked | {"Origin": "https://app.example"})
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
    other = app.client.options("/generate", headers=asked | {"Origin": "https://other.example"})
    # A rejection of the proxy itself, which knows the origins from the launcher.
    refused = app.client.get("/v1/avatar/jobs", headers={"Origin": "https://app.example"})
    assert (other.status_code, refused.status_code) == (403, 403)
    assert "Access-Control-Allow-Origin" not in other.headers
    assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_health_and_documentation(app):
    assert app.client.get("/hc").json() == {"status": "ok"}
    health = app.client.get("/health").json()
    assert (health["engine"], health["device"], health["landmarks"]) == ("warp", "cpu", "mesh")
    assert "swagger" in app.client.get("/docs").text.lower()
    paths = app.client.get("/openapi.json").json()["paths"]
    assert {"/generate", "/hc", "/health", "/v1/avatar/jobs"} <= set(paths)


def outside_face(frame: np.ndarray, detector: MeshDetector) -> np.ndarray:
    """Return the pixels that no part of the face's crop box covers."""
    [found] = detector.detect([frame])
    x0, y0 = found.points.min(0) - 0.35 * np.ptp(found.points, axis=0)
    x1, y1 = found.points.max(0) + 0.35 * np.ptp(found.points, axis=0)
    mask = np.ones(frame.shape[:2], bool)
    mask[max(0, int(y0)) : int(y1), max(0, int(x0)) : int(x1)] = False
    return mask


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def mouth_opening(frames: np.ndarray) -> np.ndarray:
    """Return the distance of the inner lips in face heights, per frame."""
    found = MeshDetector().detect(list(frames))
    points = np.stack([face.points for face in found])
    heights = np.ptp(points[:, :, 1], axis=1)
    return np.linalg.norm(points[:, 66] - points[:, 62], axis=1) / heights


def loudness_per_frame(path: Path, frames: int) -> np.ndarray:
    """Return the level of each frame's 40 ms in decibels above a quiet floor."""
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray().ravel() for f in container.decode(audio=0)])
    parts = sound[: frames * 640].astype(np.float64).reshape(frames, 640) / 32768
    level = 10 * np.log10(np.mean(parts**2, axis=1) + 1e-7)
    smooth = np.convolve(level, np.ones(3) / 3, mode="same")
    return np.maximum(smooth, -50)


def test_a_preview_is_one_frame_with_its_box(app, clip, speech):
    body = {"musetalk_job_id": "preview", **uris(clip(), speech(1.0)), "params": {"crf": 20}}
    response = app.client.post("/v1/avatar/preview", json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (240, 320, 3)
    x0, y0, x1, y1 = map(int, response.headers["x-face-box"].split(","))
    assert 0 <= x0 < x1 <= 320 and 0 <= y0 < y1 <= 240
    assert picture[y0, x0].tolist() == [0, 220, 0]  # the box is drawn in
    plain = app.client.post("/v1/avatar/preview", json=body | {"boxes": False})
    assert plain.headers["x-face-box"] == response.headers["x-face-box"]
    unmarked = cv2.imdecode(np.frombuffer(plain.content, np.uint8), cv2.IMREAD_COLOR)
    assert unmarked[y0, x0].tolist() != [0, 220, 0]
    refused = app.client.post("/v1/avatar/preview", json=body | {"video_url": "file:///etc/passwd"})
    assert refused.status_code == 422
