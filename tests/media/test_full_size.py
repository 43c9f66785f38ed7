"""One job through the networks at their real size, with seeded random weights."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tests.decoding import frames_of

MAKER = Path(__file__).resolve().parents[3] / "shared" / "tools" / "make_weights.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not MAKER.exists(), reason="needs ../shared/tools/make_weights.py")
def test_one_second_at_full_size(clip, speech, tmp_path):
    # Ten frames a second keep it to ten passes, each about five seconds on two cores.
    video, audio = clip(frames=10, fps=Fraction(10)), speech(1.0)
    make = [sys.executable, str(MAKER), str(tmp_path), "full"]
    subprocess.run(make, check=True, timeout=900, stdout=subprocess.DEVNULL)
    out = tmp_path / "out.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "musetalk_pipeline", str(video), str(audio), "-o", str(out),
         "--engine", "musetalk", "--models", str(tmp_path / "models"), "--landmarks", "mesh",
         "--device", "cpu"],
        capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "musetalk" in done.stdout
    frames, source = frames_of(out), frames_of(video)
    assert len(frames) == 10
    for before, after in zip(source, frames, strict=True):
        changed = abs(before.astype(int) - after).max(axis=2) > 40
        # Random networks draw noise: much of the lower face, and nothing near the frame's edge.
        assert changed.mean() > 0.02
        assert not changed[:5].any()
