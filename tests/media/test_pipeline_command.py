"""The command line, as a process: exit codes, one-line errors, pictures, Ctrl-C, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from musetalk_pipeline.contact_sheet import CELL_PX, GAP_PX, spread, write_contact_sheet
from musetalk_pipeline.errors import NoFaceFound
from musetalk_pipeline.faces import LandmarkDetector, Landmarks
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.preview import SAMPLED_FRAMES, make_preview
from tests.decoding import frames_of

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 240


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "musetalk_pipeline", *map(str, arguments), "--engine", "warp"]


def do(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=RUN_S
    )


def test_one_call_makes_the_video_the_sheet_and_the_preview(clip, speech, tmp_path):
    out, sheet, preview = (tmp_path / name for name in ("o.mp4", "s.png", "p.png"))
    more = ("--contact-sheet", sheet, "--preview", preview, "--preset", "ultrafast")
    done = do(clip(frames=20), speech(1.2), "-o", out, *more)
    assert done.returncode == 0, done.stderr
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30
    for said in (str(out), "warp", "mesh", "30 (30 with a face)", "compose"):
        assert said in done.stdout
    assert cv2.imread(str(sheet)).shape[1] == 6 * (CELL_PX + GAP_PX) + GAP_PX
    assert cv2.imread(str(preview)).shape == (240, 320, 3)
    assert sorted(tmp_path.iterdir()) == sorted([out, sheet, preview])


def test_what_was_decided_for_the_caller_is_said(clip, speech, tmp_path):
    more = ("--resolution", "161x121", "--preset", "ultrafast")
    done = do(clip(frames=8), speech(0.4), "-o", tmp_path / "o.mp4", *more)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("warning ")]
    assert "160x120" in line


def test_bad_input_is_said_in_one_line_with_exit_code_2(clip, speech, tmp_path):
    faceless = clip(frames=8, faceless=frozenset(range(8)))
    (tmp_path / "text.mp4").write_text("not a video " * 200)
    for video, audio, code in (
        (faceless, speech(0.4), "no_face"),
        (tmp_path / "text.mp4", speech(0.4), "invalid_video"),
        (tmp_path / "absent.mp4", speech(0.4), "invalid_video"),
        (clip(frames=8), tmp_path / "text.mp4", "invalid_audio"),
    ):
        done = do(video, audio, "-o", tmp_path / "out.mp4")
        assert done.returncode == 2
        last = done.stderr.strip().splitlines()[-1]
        assert "error: " in last and f"[{code}]" in last
        assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["text.mp4"]


def test_a_fault_of_this_machine_has_exit_code_1(clip, speech, tmp_path):
    arguments = (clip(frames=8), speech(0.4), "-o", tmp_path / "out.mp4")
    done = subprocess.run(
        [*command(*arguments)[:-2], "--engine", "musetalk", "--models", tmp_path / "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 1
    assert "[model_load_failed]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_source_is_never_overwritten(clip, speech):
    video = clip(frames=8)
    before = video.read_bytes()
    done = do(video, speech(0.4), "-o", video)
    assert done.returncode == 2
    assert video.read_bytes() == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_nothing(clip, speech, tmp_path, signum):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "out.mp4"
    process = subprocess.Popen(
        command(clip(frames=100), speech(60.0), "-o", out),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    said = b""
    while b"compose" not in said:  # in the middle of it
        part = process.stderr.read1(4096)
        assert part, said.decode()
        said += part
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said + rest
    assert not list(scratch.glob("lipsync-*"))
    assert not list(tmp_path.glob("out*"))
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(clip, speech, tmp_path):
    """18 s beside 6, from where on no more segments are held; benchmarks/memory.py does it with
    five minutes at 720p.
    """
    width, height, short, long = 640, 360, 6, 18

    def peak(seconds: int) -> int:
        video, audio = clip(frames=seconds * 25, width=width, height=height), speech(seconds)
        arguments = command(video, audio, "-o", tmp_path / "o.mp4", "--preset", "ultrafast")
        highest = 0
        with subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                highest = max(highest, _tree_bytes(root))
                time.sleep(0.1)
        assert process.returncode == 0
        return highest

    all_frames = (long - short) * 25 * width * height * 3 // 2  # I420; 99 MiB
    assert peak(long) - peak(short) < all_frames / 2


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it ended in between
    return total


class Counting:
    """A detector that counts the frames that it is shown."""

    def __init__(self, inner: LandmarkDetector) -> None:
        self._inner = inner
        self.name = inner.name
        self.frames = 0

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks | None]:
        self.frames += len(frames)
        return self._inner.detect(frames)


def test_a_preview_shows_one_frame_and_its_box(clip, speech, tools):
    """The reference's UI shows its hint after a second landmark pass over the whole video (Q31)."""
    video = clip(frames=20, faceless=frozenset({0, 1, 2}))
    detector = Counting(tools.detector)
    preview = make_preview(video, speech(0.8), JobOptions(), replace(tools, detector=detector))
    assert 2 <= detector.frames <= SAMPLED_FRAMES
    assert preview.source_frame not in (0, 1, 2)
    box = preview.face.box
    picture = cv2.imdecode(np.frombuffer(preview.png(), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == preview.frame.shape == (240, 320, 3)
    assert picture[box.y0, (box.x0 + box.x1) // 2].tolist() == [0, 220, 0]
    source = frames_of(video)[preview.source_frame]
    drawn = np.abs(preview.frame.astype(int) - source).max(axis=2) > 0
    assert drawn[box.y0 : box.y1, box.x0 : box.x1].any()
    drawn[box.y0 - 1 : box.y1 + 1, box.x0 - 1 : box.x1 + 1] = False
    assert not drawn.any()


def test_a_preview_without_a_face_is_refused(clip, speech, tools):
    faceless = clip(frames=8, faceless=frozenset(range(8)))
    with pytest.raises(NoFaceFound):
        make_preview(faceless, speech(0.4), JobOptions(), tools)


def test_a_contact_sheet_pairs_each_result_with_its_source(clip, tmp_path):
    """Fed with the source as its own result, both rows show the same picture."""
    video = clip(frames=12, fps=Fraction(25))
    sheet = tmp_path / "sheet.png"
    write_contact_sheet(video, video, sheet, instants=3)
    picture = cv2.imread(str(sheet))
    half = picture.shape[0] // 2
    caption = 22
    above, below = picture[caption:half], picture[half + caption :]
    np.testing.assert_array_equal(above, below)
    assert picture.std() > 20
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_a_contact_sheet_shows_the_frames_that_were_used(clip, tmp_path):
    """With a part of the video, the frame above is not the one in the same place."""
    video, sheet = clip(frames=12), tmp_path / "sheet.png"
    write_contact_sheet(video, video, sheet, instants=1, source_of=lambda frame: frame + 5)
    moved = cv2.imread(str(sheet))
    write_contact_sheet(video, video, sheet, instants=1)
    same = cv2.imread(str(sheet))
    half = same.shape[0] // 2
    assert not np.array_equal(moved[:half], same[:half])
    np.testing.assert_array_equal(moved[half + 22 :], same[half + 22 :])


def test_instants_are_spread_and_never_repeated():
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 6) == [0, 1]
    assert spread(1, 6) == [0]
