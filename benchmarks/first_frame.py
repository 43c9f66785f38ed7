"""How soon a job can be watched: the first frame of its stream against the whole job, in one run.

    python benchmarks/first_frame.py [--seconds 30] [--size 1280x720] [--rounds 3]

Starts the application with the engine `warp` and without kept avatars. Each round submits a job,
requests its playlist until there is one, fetches what the playlist names, and decodes the first
frame. The last line is one JSON object with medians: wall seconds since the submission, and the CPU
seconds of the application by then.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urljoin

import av
import psutil
from project import ROOT  # noqa: F401  (lets this file import the project)
from serve_overhead import cpu_seconds, in_session, make_media

from tests.serve.running import RunningApp, running_app

POLL_S = 0.02
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Moment:
    """A moment of a job, in seconds since its submission: of the wall clock, and of CPUs."""

    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        media = make_media(folder, options.size, options.seconds)
        with running_app(folder / "app") as app:
            rounds = [one_job(app, *media) for _ in range(options.rounds + 1)]
    for moments in rounds:
        print(*moments, file=sys.stderr)
    first, whole = zip(*rounds[1:], strict=True)  # the first job is slower than all that follow
    document = {"first_frame": asdict(median(first)), "whole_job": asdict(median(whole))}
    print(json.dumps(vars(options) | document))
    return 0


def one_job(app: RunningApp, video: Path, audio: Path) -> tuple[Moment, Moment]:
    """Do a job; return when its first frame was decoded, and when it had succeeded.

    Raises:
        RuntimeError: it ended otherwise.
    """
    processes = [process for process in psutil.process_iter() if in_session(process, app)]
    before, began = cpu_seconds(processes), time.perf_counter()

    def moment() -> Moment:
        wall_s = time.perf_counter() - began
        return Moment(round(wall_s, 3), round(cpu_seconds(processes) - before, 2))

    body = {"video_url": video.as_uri(), "audio_url": audio.as_uri()}
    job_id = app.client.post("/v1/avatar/jobs", json=body).raise_for_status().json()["id"]
    decode_first_frame(app, job_id)
    first = moment()
    while (job := app.job(job_id))["status"] not in ENDED:
        time.sleep(POLL_S)
    if job["status"] != "succeeded":
        raise RuntimeError(job["error"])
    return first, moment()


def decode_first_frame(app: RunningApp, job_id: str) -> None:
    """Wait for the playlist of a job, and decode the first frame of what it names."""
    path = f"/v1/avatar/jobs/{job_id}/stream.m3u8"
    while (answer := app.client.get(path)).status_code == 404:
        time.sleep(POLL_S)
    lines = answer.raise_for_status().text.splitlines()
    [init] = [line.split('"')[1] for line in lines if line.startswith("#EXT-X-MAP:")]
    fragment = next(line for line in lines if not line.startswith("#"))
    parts = [app.client.get(urljoin(path, name)).raise_for_status() for name in (init, fragment)]
    with av.open(io.BytesIO(b"".join(part.content for part in parts))) as container:
        next(container.decode(video=0))


def median(moments: Sequence[Moment]) -> Moment:
    """Return the medians of both numbers."""
    return Moment(
        statistics.median(moment.wall_s for moment in moments),
        statistics.median(moment.cpu_s for moment in moments),
    )


if __name__ == "__main__":
    sys.exit(main())
