"""`make run-fleet`, as it is run: an orchestrator, two applications on Ray, and a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.fleet import JOBS, frames_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_videos_come_of_ten_jobs_although_a_worker_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.fleet", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with SIGKILL while it ran a job" in done.stdout
    assert f"{JOBS} jobs have exactly one accepted result each" in done.stdout
    videos = sorted(tmp_path.glob("*.mp4"))
    assert len(videos) == JOBS
    assert {frames_of(video) for video in videos} == {50}  # two seconds at 25 frames/s
    assert not [one for one in psutil.process_iter() if is_left(one)]


def is_left(process: psutil.Process) -> bool:
    """Return whether a process belongs to a worker of the demo that should have ended."""
    try:
        folder = process.environ().get("RAY_TMPDIR", "")
    except psutil.Error:
        return False
    return folder.startswith("/tmp/lf-") and not Path(folder).exists()
