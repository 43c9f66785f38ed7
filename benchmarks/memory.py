"""Memory that must not grow with the work: of one job, and of Ray's object store after many.

    python benchmarks/memory.py [--size 1280x720] [--seconds 15 300] [--part all]

- `job`: the peak of a 5-minute clip beside one of 15 seconds, each in its own process. The figure
  is the most that the job's process and all its children hold together (proportional set size, so
  that shared pages count once), sampled twenty times a second.
- `store`: what is left in the object store of the served application after jobs of 15 s, 1 min and
  5 min and after 50 short ones.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import object_store
import psutil
from media import make_clip, make_speech
from project import RESULTS, ROOT

SAMPLE_S = 0.05
GOAL = 1.3
JOB_S = 7200
RESULT = RESULTS / "memory.json"


def peak_mib(command: list[str]) -> tuple[float, float]:
    """Run a command; return the peak memory of its process tree in MiB and the seconds it took."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                peak = max(peak, sum(map(_held, [root, *root.children(recursive=True)])))
                if time.monotonic() - started > JOB_S:
                    raise RuntimeError(f"the job took longer than {JOB_S} s")
                time.sleep(SAMPLE_S)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"the job failed with {process.returncode}")
    return peak / 2**20, time.monotonic() - started


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # it ended in between


def measure(clip: Path, clip_s: int, seconds: int, preset: str) -> dict[str, float]:
    """Return the peak of a job with a clip and speech of that length, engine `warp`."""
    video, speech = clip.with_name(f"{seconds}.mp4"), clip.with_name(f"{seconds}.wav")
    repeats = -(-seconds // clip_s) - 1
    loop = ["ffmpeg", "-v", "error", "-y", "-stream_loop", str(repeats), "-i", str(clip)]
    subprocess.run([*loop, "-c", "copy", "-t", str(seconds), str(video)], check=True)
    make_speech(speech, seconds)
    command = [sys.executable, "-m", "musetalk_pipeline", str(video), str(speech)]
    more = ["--engine", "warp", "--preset", preset]
    peak, took = peak_mib([*command, "-o", str(clip.with_name("out.mp4")), *more])
    return {"seconds": seconds, "peak_mib": round(peak, 1), "took_s": round(took, 1)}


def of_jobs(clip: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the peaks of a short and a long job, and their ratio."""
    rows = [measure(clip, args.seconds[0], seconds, args.preset) for seconds in args.seconds]
    for row in rows:
        print(f"{row['seconds']} s of {args.size}: {row['peak_mib']} MiB, took {row['took_s']} s")
    ratio = rows[1]["peak_mib"] / rows[0]["peak_mib"]
    print(f"ratio {ratio:.2f} (goal {GOAL})")
    return {"preset": args.preset, "rows": rows, "ratio": round(ratio, 3)}


def of_store(clip: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what is left in the object store after jobs, and how much more after the last ones
    than after the first.
    """
    rows = []
    for row in object_store.measure(clip, args.store_seconds, args.short_jobs):
        print(f"after {row['after']}: {row['objects']} objects, {row['mib']} MiB", flush=True)
        rows.append(row)
    grown = rows[-1]["mib"] - rows[1]["mib"]
    return {"rows": rows, "grown_mib": round(grown, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=["job", "store", "all"], default="all")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--seconds", type=int, nargs=2, default=[15, 300], help="of job")
    parser.add_argument("--preset", default="medium", help="of libx264, for job")
    parser.add_argument("--store-seconds", type=int, nargs="+", default=[15, 60, 300])
    parser.add_argument("--short-jobs", type=int, default=50, help="in a row, for store")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    report: dict[str, Any] = {}
    if RESULT.exists():  # the other part was measured before
        report = json.loads(RESULT.read_text())
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{psutil.cpu_count()} cores {platform.machine()}",
        "size": args.size,
    }
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, width, height, args.seconds[0] * 25)
        if args.part in ("job", "all"):
            report["job"] = about | of_jobs(clip, args)
        if args.part in ("store", "all"):
            report["store"] = about | of_store(clip, args)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
