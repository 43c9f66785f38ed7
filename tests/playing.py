"""What ffmpeg shows when it plays a video: a file, or a stream that still grows."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tests.serve.running import JOB_S, RunningApp
from tests.waiting import until


@contextlib.contextmanager
def frame_sums(source: str) -> Iterator[Iterator[str]]:
    """Have ffmpeg play a video from its start. Yield its line about each frame as it is shown: the
    time, the duration, and a digest of the pixels.
    """
    live = ["-live_start_index", "0"] if ".m3u8" in source else []
    command = ["ffmpeg", "-v", "error", "-xerror", *live, "-i", source, "-map", "0:v"]
    output = ["-f", "framemd5", "-flush_packets", "1", "-"]
    with subprocess.Popen([*command, *output], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield (line for line in process.stdout if not line.startswith("#"))
            assert process.wait(JOB_S) == 0
        finally:
            process.kill()


def played(source: str) -> list[str]:
    """Have ffmpeg play a video to its end, and return its line about each frame."""
    with frame_sums(source) as shown:
        return list(shown)


def link_to(app: RunningApp, job_id: str) -> str:
    """Wait until something of a job can be played, and return the link to its stream."""
    return until(
        lambda: app.job(job_id).get("stream_url"),
        f"{job_id} cannot be watched",
        JOB_S,
        pause_s=0.05,
    )


@contextlib.contextmanager
def watched(app: RunningApp, job_id: str) -> Iterator[Future[list[str]]]:
    """Play a job beside the block, from when it can be played. Yield what will have been shown."""
    with ThreadPoolExecutor(1) as viewer:
        yield viewer.submit(lambda: played(link_to(app, job_id)))
