"""What the job store costs the ingress: CPU milliseconds of each operation, and of a whole job.

    python benchmarks/job_store.py [--jobs 200] [--waiting 200]

A job is submitted, taken, beaten for six changes of phase and ten seconds, finished, and read
sixteen times, while `waiting` other jobs are queued. CPU counts for the whole process, in user and
in system mode. Waits for the disk do not count; they are in `wall_ms`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from project import ROOT  # noqa: F401  the packages are imported from the repository

from serve_app.contract.outcomes import Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import Job, Origin
from serve_app.jobs.registry import JobRegistry

T = TypeVar("T")

PHASES = (
    Phase.DOWNLOADING,
    Phase.VALIDATING,
    Phase.PREPARING,
    Phase.INFERRING,
    Phase.ENCODING,
    Phase.UPLOADING,
)
BEATS, READS = 10, 16
LEASE_S = 20.0
DONE = Progress(Phase.COMPLETED, 1.0, 250, 250, {"inference": 9.0})
SUCCESS = Success("http://host/files/a.mp4", {"GENERATION_TIME_SEC": 9.0, "stage_times": {}})


@dataclass
class Costs:
    """CPU and wall seconds of each call, by its name."""

    cpu_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wall_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def of(self, name: str, call: Callable[[], T]) -> T:
        """Call, and count it."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        self.cpu_s[name].append(time.process_time() - cpu)
        self.wall_s[name].append(time.perf_counter() - wall)
        return result

    def rows(self) -> list[dict[str, object]]:
        """Return the mean of each operation in milliseconds."""
        return [
            {
                "operation": name,
                "calls": len(cpu),
                "cpu_ms": round(1000 * sum(cpu) / len(cpu), 3),
                "wall_ms": round(1000 * sum(self.wall_s[name]) / len(cpu), 3),
            }
            for name, cpu in self.cpu_s.items()
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        costs = Costs()
        path = Path(name) / "jobs.sqlite3"
        registry = costs.of("open", lambda: JobRegistry(path))
        do_job(registry, "warm", Costs())
        for number in range(args.jobs):
            do_job(registry, f"job-{number}", costs)
            if number == 0:
                for other in range(args.waiting):
                    registry.submit(request(f"waiting-{other}"), Origin.CLAIMED, 1_000_000)
        registry.close()
    rows = costs.rows()
    job_ms = sum(sum(costs.cpu_s[row["operation"]]) for row in rows[1:]) * 1000 / args.jobs
    for row in rows:
        print("{operation:10} {calls:6} calls {cpu_ms:8.3f} ms CPU {wall_ms:8.3f} ms".format(**row))
    print(json.dumps({"job_cpu_ms": round(job_ms, 2), "operations": rows}))


def do_job(registry: JobRegistry, job_id: str, costs: Costs) -> None:
    """Do what the ingress does for one job."""
    costs.of("submit", lambda: registry.submit(request(job_id), Origin.ASYNC, 1_000_000))
    job = costs.of("take", lambda: registry.take(LEASE_S, 3))
    assert job is not None
    assert job.id == job_id
    beat_phases(registry, job, costs)
    for number in range(BEATS):
        progress = Progress(Phase.UPLOADING, number / BEATS, 25 * number, 250)
        costs.of("beat", lambda p=progress: registry.beat(job, LEASE_S, p))
    assert costs.of("finish", lambda: registry.finish(job, SUCCESS, DONE))
    for _ in range(READS):
        costs.of("get", lambda: registry.get(job_id))
    costs.of("list 50", lambda: registry.page(None, 50))
    costs.of("sweep", lambda: registry.sweep(3))


def beat_phases(registry: JobRegistry, job: Job, costs: Costs) -> None:
    """Store the changes of phase of an attempt, one with each beat."""
    for phase in PHASES:
        progress = Progress(phase, 0.1, 0, 250, {"download": 0.4})
        costs.of("phase", lambda p=progress: registry.beat(job, LEASE_S, p, (p,)))


def request(job_id: str) -> JobRequest:
    """Return a job that differs from the others by its id alone."""
    return JobRequest(
        musetalk_job_id=job_id,
        video_url="https://host.example/face.mp4?signature=0123456789abcdef",
        audio_url="https://host.example/speech.wav?signature=0123456789abcdef",
        aspect_ratio="9:16",
        resolution="720p",
    )


if __name__ == "__main__":
    main()
