"""How jobs share replicas: an engine of fixed latency behind the real application and real Ray.

    python benchmarks/scaling.py [--segment-s 4] [--replicas 1 2 4 8] [--only long short]

The engine sleeps, so that replicas cost no CPU and two cores are enough for eight of them. A
picture is small and has 10 frames a second, a segment has 20 frames, and the landmarks are known.
All else is what jobs go through. Every figure is a ratio of times of the same run:

- `one_job_N_of_linear`: a job of 60 s on N replicas against N times the speed on one.
- `short_jobs_8_of_ideal`: 16 jobs of one segment at once, against their work divided by 8.
- `short_beside_long_of_alone`: jobs of one segment beside two of 60 s, against the same alone; the
  mean of three.
- `pool_shares_error`: three pools of speeds 1:2:4 draw a job of 60 s; the largest deviation of
  a pool's frames from its share of the speed, as a part of that share.
- `first_piece_segments`: from the request to the first encoded piece, in times of a segment.
- `overhead_s`: what a segment takes in addition to the engine's time, if nothing else runs.
- `burst_…`: eight jobs at once for a pool of at most four replicas that has none. When the first
  replica starts and runs, how many start, how many different numbers run one after the other, and
  how often a number goes up again after it has gone down, until the pool is at zero again.

CPU seconds are of all processes of the application. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from project import RESULTS, ROOT
from scaling_burst import measure_burst
from scaling_site import Run, Site, at_once

BURST_REPLICAS = 4
PAUSES_S = (0.0, 1.0, 2.0)  # before each short job beside long ones


def one_job(site: Site, replicas: int) -> Run:
    """Return a long job on so many replicas."""
    site.deploy({"name": "gpu", "replicas": replicas, "frames_per_s": site.frames_per_s})
    return site.run(lambda: site.generate(site.long))


def beside_long_jobs(site: Site, replicas: int) -> tuple[list[float], Run]:
    """Return the seconds of short jobs beside two long ones, one after the other, and the run.

    They begin at different times since the replicas, which tend to end together, have begun.
    """
    seconds: list[float] = []

    def work() -> None:
        with ThreadPoolExecutor(2) as threads:
            long: list[Future[float]] = [threads.submit(site.generate, site.long) for _ in "ab"]
            wait_for_drawn(site, replicas)
            for pause_s in PAUSES_S:
                time.sleep(pause_s)
                began = time.monotonic()
                site.generate(site.short)
                seconds.append(time.monotonic() - began)
                if any(job.done() for job in long):
                    raise RuntimeError("the long jobs have ended too early")
            for job in long:
                job.result()

    run = site.run(work)
    return seconds, run


def wait_for_drawn(site: Site, calls: int) -> None:
    """Wait until so many calls have drawn, so that all replicas are busy."""
    while site.journal.read_text().count("generate") < calls:
        time.sleep(0.05)


def shares_error(run: Run, speeds: dict[str, float]) -> float:
    """Return the largest deviation of a pool's share of frames from its share of the speed."""
    frames: Counter[str] = Counter()
    for call in run.calls:
        if call.kind == "generate":
            frames[call.pool] += call.frames
    print("frames by pool:", dict(frames), flush=True)
    drawn, speed = frames.total(), sum(speeds.values())
    return max(abs(frames[pool] / drawn / (speeds[pool] / speed) - 1) for pool in speeds)


def measure(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Do all runs that were asked for; return the figures."""
    figures: dict[str, Any] = {}
    if "long" in options.only:
        figures |= measure_long(site, options)
    if "short" in options.only:
        figures |= measure_short(site, options)
    if "pools" in options.only:
        figures |= measure_pools(site)
    if "burst" in options.only:
        figures |= measure_burst(site, BURST_REPLICAS)
    return figures


def measure_long(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Return how much faster a long job is on more replicas."""
    figures: dict[str, Any] = {}
    first: tuple[int, float] | None = None  # replicas and their seconds
    for replicas in options.replicas:
        run = one_job(site, replicas)
        first = first or (replicas, run.wall_s)
        linear = first[1] * first[0] / replicas / run.wall_s
        figures[f"one_job_{replicas}_of_linear"] = round(linear, 3)
        busy = run.engine_s / replicas / run.wall_s
        show(f"one job on {replicas}", run, of_linear=linear, busy=busy)
    return figures


def measure_short(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Return how short jobs fare alone, beside each other and beside long ones."""
    replicas = max(options.replicas)
    if "long" not in options.only:  # else they run already
        site.deploy({"name": "gpu", "replicas": replicas, "frames_per_s": site.frames_per_s})
    site.run(lambda: site.generate(site.short))  # the first one loads what later ones find
    alone = site.run(lambda: site.generate(site.short))
    composed = min(call.ended for call in alone.calls if call.kind == "compose")
    figures = {
        "first_piece_segments": round((composed - alone.began) / options.segment_s, 2),
        "overhead_s": round(composed - alone.began - alone.engine_s, 3),
    }
    show("a short job alone", alone, **figures)
    run = site.run(lambda: at_once(site, [site.short] * 2 * replicas))
    of_ideal = run.wall_s / (run.engine_s / replicas)
    show(f"{2 * replicas} short jobs", run, of_ideal=of_ideal)
    found, run = beside_long_jobs(site, replicas)
    beside_s = statistics.mean(found)
    print("short jobs beside long ones, s:", [round(one, 2) for one in found], flush=True)
    show("two long jobs and short ones", run, short_s=beside_s, alone_s=alone.wall_s)
    return figures | {
        f"short_jobs_{replicas}_of_ideal": round(of_ideal, 3),
        "short_beside_long_of_alone": round(beside_s / alone.wall_s, 3),
    }


def measure_pools(site: Site) -> dict[str, Any]:
    """Return how far the shares of three pools are from their speeds."""
    speeds = {"slow": 0.5, "middle": 1.0, "fast": 2.0}
    site.deploy(
        *(
            {"name": name, "replicas": 1, "frames_per_s": speed * site.frames_per_s}
            for name, speed in speeds.items()
        )
    )
    run = site.run(lambda: site.generate(site.long))
    error = shares_error(run, speeds)
    busy = run.engine_s / len(speeds) / run.wall_s
    show("one job in three pools", run, error=error, busy=busy)
    return {"pool_shares_error": round(error, 3)}


def show(name: str, run: Run, **more: float) -> None:
    """Print one line about a run."""
    calls = Counter(call.kind for call in run.calls)
    if run.gaps_s:
        more = {"gap_ms": 1000 * statistics.mean(run.gaps_s), **more}
    facts = ", ".join(f"{key} {value:.3g}" for key, value in more.items())
    print(
        f"{name}: {run.wall_s:.2f} s wall, {sum(run.cpu_s.values()):.2f} s CPU, "
        f"{calls['generate']} segments, lead {run.lead_s:.2f} s, rest {run.rest_s:.2f} s"
        + (f", {facts}" if facts else ""),
        flush=True,
    )
    print("   CPU:", {key: round(seconds, 2) for key, seconds in run.cpu_s.items()}, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--segment-s", type=float, default=4.0, help="for drawing one segment")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parts = ("long", "short", "pools", "burst")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args(arguments)
    ray_folder = tempfile.mkdtemp(prefix="ray")  # Ray's sockets lie below: a short path
    os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": ray_folder, "RAY_USAGE_STATS_ENABLED": "0"}
    folders = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"ALLOW_ANONYMOUS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    import ray
    from ray import serve

    try:
        with tempfile.TemporaryDirectory(prefix="bench") as name:
            site = Site(Path(name), options.segment_s)
            ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
            serve.start(http_options={"host": "127.0.0.1", "port": site.port})
            figures = measure(site, options)
            serve.shutdown()
            ray.shutdown()
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    document = {
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "segment_s": options.segment_s,
        **figures,
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    sys.exit(main())
