"""Fuzz the media probe: damaged copies of real files give a MediaError or a usable result, never
anything else, and leave no child and no file.

`pytest tests/hostile/fuzz_probe.py` tries a fixed set; `python tests/hostile/fuzz_probe.py SECONDS`
goes on with new ones for that long.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from musetalk_pipeline.errors import DeadlineExceeded, MediaError
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.probe import open_audio, probe_video
from musetalk_pipeline.options import FrameOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture

LIMITS = MediaLimits(max_duration_s=30.0, min_bytes=1)
PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=48x32:r=25:d=0.6,format=yuv420p")
TONE = ("-f", "lavfi", "-i", "sine=d=0.6")
SEEDS: dict[str, tuple[str, ...]] = {
    ".mp4": (*PICTURE, *TONE, "-c:v", "libx264", "-preset", "ultrafast", "-bf", "2"),
    ".mkv": (*PICTURE, *TONE, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "flac"),
    ".avi": (*PICTURE, *TONE, "-c:v", "mpeg4", "-c:a", "mp3"),
    ".ts": (*PICTURE, *TONE, "-c:v", "mpeg2video", "-c:a", "mp2"),
    ".flv": (*PICTURE, "-c:v", "flv1"),
    ".wav": TONE,
    ".mp3": TONE,
    ".ogg": (*TONE, "-c:a", "libvorbis"),
    ".flac": TONE,
}
EXAMPLES = 25


@cache
def seed(suffix: str) -> bytes:
    """Return the undamaged file of that kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        command = ["ffmpeg", "-v", "error", *SEEDS[suffix], str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return path.read_bytes()


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Draw a file with bytes replaced, mostly near its front where the headers are, perhaps cut."""
    data = bytearray(seed(draw(st.sampled_from(sorted(SEEDS)))))
    front = st.integers(12, min(1500, len(data) - 1))
    places = st.lists(st.one_of(front, st.integers(12, len(data) - 1)), max_size=12)
    for place in draw(places):
        value = draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(b"\xff" * 4)))
        data[place : place + len(value)] = value
    if draw(st.booleans()):
        del data[draw(st.integers(12, len(data))) :]
    return bytes(data)


def check(data: bytes) -> None:
    """Probe `data` as a video and as sound; use what is accepted."""
    before = set(psutil.Process().children(recursive=True))
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "input", Path(folder) / "out"
        path.write_bytes(data)
        out.mkdir()
        try:
            source = probe_video(path, LIMITS, out)
            assert 1 <= source.n_frames <= LIMITS.max_duration_s * LIMITS.max_fps * 2
            picture = fit_picture(source, FrameOptions(), [])
            n_read = sum(1 for _ in read_frames(source, picture, 0, min(3, source.n_frames)))
            assert n_read == min(3, source.n_frames)
        except (MediaError, DeadlineExceeded) as error:
            assert error.message.endswith(".") and folder not in error.message
        try:
            sound = open_audio(path, out, LIMITS)
            assert sound.pcm_path.stat().st_size == 4 * sound.n_samples
        except (MediaError, DeadlineExceeded) as error:
            assert error.message.endswith(".") and folder not in error.message
        assert not [file.name for file in out.iterdir() if file.name.endswith(".part")]
    assert not set(psutil.Process().children(recursive=True)) - before


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(damaged_files())
def test_damaged_files_never_surprise(data: bytes) -> None:
    check(data)


def main(seconds: float) -> None:
    """Try new examples until the time is up; print how many."""
    ends, count = time.monotonic() + seconds, 0

    @settings(
        max_examples=50,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged_files())
    def go_on(data: bytes) -> None:
        nonlocal count
        if time.monotonic() < ends:
            check(data)
            count += 1

    while time.monotonic() < ends:
        go_on()
    print(f"{count} damaged files, no surprise")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
