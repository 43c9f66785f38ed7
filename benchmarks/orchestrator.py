"""How fast the orchestrator answers 500 workers with 10,000 jobs in the queue, on each database.

    python benchmarks/orchestrator.py [--workers 500] [--jobs 10000] [--job-s 30] [--seconds 30]
        [--database sqlite postgresql] [--out benchmarks/results/orchestrator.json]

Each database gets a service process of its own. First the workers work at their real pace: each
beats every 5 s, reports progress every 5 s, and claims when its job of some 30 s has ended; a
client submits as many jobs as are finished. Then 16 workers claim and finish without a pause. The
simulated workers run in this process, on the same machine. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from orchestrator_load import ADMIN_KEY, WORKER_KEY, Timings, as_fast_as_possible, steady
from project import RESULTS, ROOT

from orchestrator.store import migrate
from orchestrator.store.database import Database, Opening
from orchestrator.store.store import JobStore
from orchestrator.store.values import NewJob, Rules
from tests.orchestrator.databases import postgres_server, why_no_postgres

CLIENTS = 10
START_S = 60.0
NUMBERS = ("workers", "jobs", "job_s", "seconds")
KINDS = ("claim", "heartbeat", "progress", "finish", "submit")


def main() -> None:
    """Measure each database and print a table and one line of JSON."""
    options = _options()
    rows = []
    for database in options.database:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-")))
            if database == "postgresql" and (reason := why_no_postgres()):
                print(f"postgresql is left out: {reason}")
                continue
            url = f"sqlite:///{folder}/orchestrator.db"
            if database == "postgresql":
                url = stack.enter_context(postgres_server(fsync=True)).new(folder)
            rows.append(measure(database, url, folder, options))
            _print(rows[-1])
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "options": {
            name: getattr(options, name) for name in ("workers", "jobs", "job_s", "seconds")
        },
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measure(database: str, url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one database."""
    fill(url, options.jobs)
    with service(url, folder) as (address, process):
        before, start = cpu_seconds(process, database), time.monotonic()
        timings = asyncio.run(
            steady(address, workers=options.workers, job_s=options.job_s, seconds=options.seconds)
        )
        after, wall_s = cpu_seconds(process, database), time.monotonic() - start
        load = psutil.getloadavg()[0]
        fast, claims_per_s = asyncio.run(as_fast_as_possible(address, workers=16, seconds=10.0))
    slowest = max(max(found) for found in timings.seconds.values())
    return {
        "database": database,
        "steady": {kind: figures(timings, kind) for kind in KINDS},
        "slowest_ms": round(slowest * 1000, 1),
        "faults": dict(timings.faults) | dict(fast.faults),
        "claimed_twice": timings.twice + fast.twice,
        "wall_s": round(wall_s, 1),
        "cpu_s": {name: round(after[name] - before[name], 1) for name in after},
        "load_average": round(load, 1),
        "claims_per_s": round(claims_per_s, 1),
    }


def figures(timings: Timings, kind: str) -> dict[str, float]:
    """Return the number of calls of a kind, and milliseconds."""
    found = sorted(timings.seconds.get(kind, [0.0]))

    def at(share: float) -> float:
        return round(found[min(int(len(found) * share), len(found) - 1)] * 1000, 1)

    return {"calls": len(found), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)}


def fill(url: str, jobs: int) -> None:
    """Queue jobs of some clients."""
    database = Database(url, Opening(survives_power_cut=False))  # so that it takes seconds only
    migrate.upgrade(database.engine)
    with JobStore(database, Rules()) as store:
        for number in range(jobs):
            client = f"client-{number % CLIENTS}"
            video, audio = f"https://media.example/{number}.mp4", "https://media.example/a.wav"
            store.submit(NewJob(f"job-{number:06}", client, video, audio))


@contextmanager
def service(url: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the service on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "INTERNAL_API_KEY": WORKER_KEY,
        "ORCHESTRATOR_ADMIN_KEY": ADMIN_KEY,
        "ORCHESTRATOR_PORT": str(port),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator"], cwd=ROOT, env=environment, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/health", process, folder / "log")
        yield address, process
    finally:
        process.terminate()
        process.wait(START_S)


def cpu_seconds(process: subprocess.Popen[bytes], database: str) -> dict[str, float]:
    """Return the CPU seconds of the service, of the database server, and of this process."""
    used = {"service": sum(psutil.Process(process.pid).cpu_times()[:2])}
    used["workers"] = sum(psutil.Process().cpu_times()[:2])
    if database == "postgresql":
        servers = [one for one in psutil.Process().children() if one.name() == "postgres"]
        family = [*servers, *(child for one in servers for child in one.children())]
        used["postgresql"] = sum(map(_cpu_s, family))
    return used


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its ended children; 0 if it has just ended itself."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text()) from None
            time.sleep(0.05)


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['database']}: {row['claims_per_s']} claims/s, slowest {row['slowest_ms']} ms, ",
        end="",
    )
    print(f"CPU {row['cpu_s']} of {row['wall_s']} s, load {row['load_average']}")
    for kind, found in row["steady"].items():
        print(f"  {kind:10}" + "".join(f"{name} {value:<10}" for name, value in found.items()))
    if row["faults"] or row["claimed_twice"]:
        print(f"  faults {row['faults']}, claimed twice {row['claimed_twice']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The orchestrator under the load of many workers.")
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--job-s", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--out", type=Path, default=RESULTS / "orchestrator.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
