"""What served jobs leave in Ray's object store, read from the metrics that the worker exports."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from media import make_speech
from project import ROOT

from demo.application import Application, application

SHORT_S = 2
JOB_S = 7200.0
START_S, SETTLE_S, POLL_S = 300.0, 60.0, 1.0
STILL = 5  # equal readings in a row
METRIC = re.compile(r"^ray_object_store_(num_local_objects|used_memory)\{[^}]*\} (\S+)$", re.M)
METRICS_URL = re.compile(r"metrics (http://\S+/metrics)")


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds: objects, and MiB."""

    objects: int
    mib: float


def measure(clip: Path, seconds: list[int], short_jobs: int) -> Iterator[dict[str, Any]]:
    """Yield what is left after a job of each length, and after `short_jobs` jobs in a row."""
    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - its name in Ray
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with application(ROOT / "serve_config.yaml", [clip.parent], log) as app:
            headers = {"X-Internal-API-Key": app.key}
            with httpx.Client(base_url=app.base_url, headers=headers, timeout=JOB_S) as client:
                _wait_until_ready(client, app.log)
                yield {"after": "the start", **_row(app)}
                for length in seconds:
                    _run(client, clip, length, f"long-{length}")
                    yield {"after": f"{length} s", **_row(app)}
                for number in range(short_jobs):
                    _run(client, clip, SHORT_S, f"short-{number}")
                yield {"after": f"{short_jobs} jobs of {SHORT_S} s", **_row(app)}


def _row(app: Application) -> dict[str, Any]:
    held = _settled(app)
    return {"objects": held.objects, "mib": round(held.mib, 2)}


def _run(client: httpx.Client, clip: Path, seconds: int, job_id: str) -> None:
    speech = clip.with_name(f"speech-{seconds}.wav")
    if not speech.exists():
        make_speech(speech, seconds)
    body = {
        "musetalk_job_id": job_id,
        "video_url": clip.as_uri(),
        "audio_url": speech.as_uri(),
        "params": {"preset": "ultrafast"},
    }
    client.post("/generate", json=body).raise_for_status()


def _settled(app: Application) -> Held:
    """Return what is held when that has stopped changing."""
    readings: list[Held] = []
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        readings.append(_held(app))
        if len(readings) >= STILL and len(set(readings[-STILL:])) == 1:
            break
        time.sleep(POLL_S)
    return readings[-1]


def _held(app: Application) -> Held:
    found = METRICS_URL.search(app.log.read_text())
    if found is None:
        raise RuntimeError("the application does not say where its metrics are")
    sums = {"num_local_objects": 0.0, "used_memory": 0.0}
    for name, value in METRIC.findall(httpx.get(found[1]).text):
        sums[name] += float(value)
    return Held(int(sums["num_local_objects"]), sums["used_memory"] / 2**20)


def _wait_until_ready(client: httpx.Client, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            if client.get("/hc").status_code == 200 and METRICS_URL.search(log.read_text()):
                return  # the launcher says where the metrics are a moment after `/hc` does
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise RuntimeError(f"the application is not ready after {START_S:g} s")
