"""Uploads at the real application: files that are sent become videos, and memory stays flat."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.decoding import frames_of
from tests.serve.running import LOSSLESS, RunningApp
from tests.serve.test_gate_in_proxy import MIB, memory

LARGE_BYTES = 300 * MIB


@pytest.fixture
def uploads(app: RunningApp) -> Iterator[Path]:
    """The folder of the uploads, which is empty afterwards."""
    yield app.folder / "state" / "uploads"
    for upload in app.client.get("/v1/uploads").json()["uploads"]:
        app.client.delete(f"/v1/uploads/{upload['id']}").raise_for_status()
    assert list((app.folder / "state" / "uploads").iterdir()) == []


@pytest.mark.slow  # the next one does the same with one file
def test_a_job_is_made_from_files_that_were_sent(
    app: RunningApp, uploads: Path, clip: Any, speech: Any, tmp_path: Path
) -> None:
    """By their addresses, and in one form: the frames are those of a job that fetched them."""
    video, audio = clip(), speech(0.6)
    body = {"video_url": video.as_uri(), "audio_url": audio.as_uri(), "params": LOSSLESS}
    fetched = app.generate(musetalk_job_id="fetched", **body).json()
    sent = {}
    for name, file in (("video", video), ("audio", audio)):
        upload = app.client.put(f"/v1/uploads/{file.name}", content=file.read_bytes())
        sent[f"{name}_url"] = upload.raise_for_status().json()["url"]
    named = app.generate(musetalk_job_id="named", **{**body, **sent}).json()
    with video.open("rb") as v, audio.open("rb") as a:
        form = app.client.post(
            "/generate",
            files={"video": ("v.mp4", v), "audio": ("a.wav", a)},
            data={"musetalk_job_id": "form", "params": '{"crf": 0, "preset": "ultrafast"}'},
        ).json()
    frames = []
    for answer in (fetched, named, form):
        assert answer["status"] == "success", answer
        frames.append(frames_of(app.output(answer, tmp_path)))
    assert len(frames[0]) == 15
    for other in frames[1:]:
        assert (other == frames[0]).all()


def test_a_picture_that_was_sent_speaks(
    app: RunningApp, uploads: Path, clip: Any, speech: Any, tmp_path: Path
) -> None:
    picture = cv2.imencode(".png", frames_of(clip(frames=1))[0])[1].tobytes()
    upload = app.client.put("/v1/uploads/face.png", content=picture).raise_for_status().json()
    assert (upload["kind"], upload["width"], upload["fps"]) == ("picture", 320, None)
    body = {"video_url": upload["url"], "audio_url": speech(0.6).as_uri(), "params": LOSSLESS}
    answer = app.generate(musetalk_job_id="picture", **body).json()
    assert answer["status"] == "success", answer
    frames = frames_of(app.output(answer, tmp_path)).astype(int)
    assert len(frames) == 15
    assert np.ptp(frames, axis=0).max() > 20, "the mouth moves"
    assert np.ptp(frames[:, :60], axis=0).max() == 0, "the forehead does not"


@pytest.mark.slow
def test_an_upload_goes_on_when_the_ingress_dies(app: RunningApp, uploads: Path) -> None:
    """The client of tus gets 503 for what is not stored, asks where it was, and sends the rest."""
    content = b"".join(large_sound(8 * MIB))
    made = app.client.post(
        "/v1/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content))}
    )
    path, statuses = made.headers["Location"], []
    for number in range(100):
        state = app.client.head(path)
        if state.status_code == 200:
            offset = int(state.headers["Upload-Offset"])
            if offset == len(content):
                break
            answer = app.client.patch(
                path,
                content=content[offset : offset + 3 * MIB // 2],
                headers={
                    "Tus-Resumable": "1.0.0",
                    "Upload-Offset": str(offset),
                    "Content-Type": "application/offset+octet-stream",
                },
            )
            statuses.append(answer.status_code)
        if number == 1:
            app.kill("Ingress")
            app.wait_ready()
    assert set(statuses) <= {204, 503} and statuses.count(204) >= 6
    assert app.client.get(path).json()["kind"] == "audio"
    [data] = uploads.glob("*.data")
    assert data.read_bytes() == content


@pytest.mark.slow
def test_a_large_upload_leaves_memory_flat(app: RunningApp, uploads: Path) -> None:
    """As it is, and as a form; in neither form is it held in the proxy or the ingress."""
    app.client.put("/v1/uploads/first.wav", content=b"".join(large_sound(MIB)))  # warm
    before = memory(app)
    for send in (send_raw, send_form):
        began = time.monotonic()
        upload = send(app, LARGE_BYTES)
        print(f"{LARGE_BYTES / MIB:.0f} MiB in {time.monotonic() - began:.1f} s")
        assert (upload["kind"], upload["bytes"]) == ("audio", LARGE_BYTES)
        after = memory(app)
        print({name: f"{before[name] / MIB:.0f} -> {after[name] / MIB:.0f}" for name in before})
        for name in before:
            assert after[name] - before[name] < 100 * MIB, name


def send_raw(app: RunningApp, n_bytes: int) -> dict[str, Any]:
    answer = app.client.put("/v1/uploads/large.wav", content=large_sound(n_bytes))
    body: dict[str, Any] = answer.raise_for_status().json()
    return body


def send_form(app: RunningApp, n_bytes: int) -> dict[str, Any]:
    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.wav"\r\n\r\n'
        yield from large_sound(n_bytes)
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = app.client.post("/v1/uploads", content=form(), headers=kind)
    body: dict[str, Any] = answer.raise_for_status().json()
    return body


def large_sound(n_bytes: int) -> Iterator[bytes]:
    """Yield silence of 16 bits, one channel and 48 kHz as a WAV file of `n_bytes`."""
    size = n_bytes - 44
    format_ = struct.pack("<IHHIIHH", 16, 1, 1, 48000, 96000, 2, 16)
    yield b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + format_
    yield b"data" + struct.pack("<I", size)
    while size:
        block = min(size, MIB)
        yield bytes(block)
        size -= block
