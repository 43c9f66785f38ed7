"""`make run` for real: the demo's whole way, and what it leaves when it is stopped half-way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import psutil
import pytest

from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture(autouse=True)
def nothing_of_ray_is_left() -> Iterator[None]:
    """The demo's Ray session, processes and folder, must be gone with it."""
    before = set(Path("/tmp").glob("lipsync-run-*"))
    yield
    assert set(Path("/tmp").glob("lipsync-run-*")) == before
    assert demo_sessions() == []


def demo_sessions() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            folder = process.environ().get("RAY_TMPDIR", "")
        except psutil.Error:
            continue
        if folder.startswith("/tmp/lipsync-run-"):
            found.append(f"{process.pid} {process.name()}")
    return found


def start_demo(out: Path, **variables: str) -> subprocess.Popen[str]:
    """Start what `make run` starts; the Makefile hands its variables on in the environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_users_files_become_a_video_and_a_contact_sheet(
    tmp_path: Path, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    source = clip(frames=30, width=320, height=240)
    demo = start_demo(tmp_path, VIDEO=str(source), AUDIO=str(speech(1.6)), RESOLUTION="160x240")
    said, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 0, said
    [video] = tmp_path.glob("demo-*.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40  # 1.6 s at 25 fps
        assert (container.streams.video[0].width, container.streams.video[0].height) == (160, 240)
    sheet = cv2.imread(str(video.with_suffix(".png")))
    assert sheet is not None and sheet.std() > 10
    assert f"{video.name}" in said and f"{video.stem}.png" in said
    assert re.search(r"^engine +warp$", said, re.MULTILINE)
    assert "40 of 40 frames" in said


@pytest.mark.slow
def test_bad_input_ends_with_the_applications_own_sentence(
    tmp_path: Path, speech: Callable[..., Path]
) -> None:
    not_a_video = tmp_path / "notes.mp4"
    not_a_video.write_text("these are my notes\n" * 200)
    demo = start_demo(tmp_path, VIDEO=str(not_a_video), AUDIO=str(speech(1.6)))
    said, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 1
    assert "the job failed (stage validation)" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_stopping_half_way_leaves_nothing(
    tmp_path: Path, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    demo = start_demo(tmp_path, VIDEO=str(clip(frames=30)), AUDIO=str(speech(1.6)))
    until(
        lambda: any("raylet" in line for line in demo_sessions()) or demo.poll() is not None,
        "the demo has not started Ray",
        TIMEOUT_S,
        pause_s=0.1,
    )
    assert demo.poll() is None
    demo.send_signal(signal.SIGTERM)
    said, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 130, said
    assert "stopped" in said
    assert list(tmp_path.glob("demo-*")) == []
