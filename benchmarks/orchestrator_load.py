"""Simulated workers for benchmarks/orchestrator.py: they call the service as real ones do, and each
call is timed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import aiohttp

HEARTBEAT_S, PROGRESS_S, PAUSE_S = 5.0, 5.0, 1.0
WORKER_KEY, ADMIN_KEY = "worker-key-of-the-benchmark", "admin-key-of-the-benchmark"
CLASSES = ("RTX-3090-24GB", "RTX-4090-24GB", "RTX-5060Ti-16GB", "RTX-4070-12GB")


@dataclass
class Timings:
    """Seconds of all calls by kind, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    claimed: set[str] = field(default_factory=set)
    twice: int = 0


class Caller:
    """Calls the service and times it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, timings: Timings) -> None:
        self._session, self._url, self.timings = session, url, timings

    async def post(self, kind: str, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Return the answer; `{}` if there is none."""
        start = time.perf_counter()
        headers = {"X-Internal-API-Key": key}
        try:
            async with self._session.post(self._url + path, json=body, headers=headers) as answer:
                found: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.timings.faults[f"{kind} {type(error).__name__}"] += 1
            return {}
        self.timings.seconds[kind].append(time.perf_counter() - start)
        if answer.status >= 300:
            self.timings.faults[f"{kind} {answer.status}"] += 1
            return {}
        return found


class SimulatedWorker:
    """One main worker with one job at a time, of `job_s` seconds."""

    def __init__(self, number: int, call: Caller, job_s: float) -> None:
        self._id, self._call, self._job_s = f"worker-{number}", call, job_s
        self._class = CLASSES[number % len(CLASSES)]
        self._job: dict[str, Any] | None = None

    async def run(self) -> None:
        """Beat and work until it is cancelled. All workers start within the length of a job."""
        await asyncio.sleep(random.random() * self._job_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._work())

    async def _beat(self) -> None:
        for number in itertools.count():
            job = self._job
            listed = [] if job is None else [_named(job)]
            body = {"status": "busy" if job else "idle", "jobs": listed}
            body |= {"gpu_class": self._class, "provider": "salad", "worker_type": "main"}
            path = f"/internal/main/workers/{self._id}/heartbeat"
            await self._call.post("heartbeat" if number else "first_beat", path, body, WORKER_KEY)
            await asyncio.sleep(HEARTBEAT_S)

    async def _work(self) -> None:
        while True:
            self._job = await self.claim()
            if self._job is None:
                await asyncio.sleep(PAUSE_S)
                continue
            until = time.monotonic() + self._job_s * random.uniform(0.8, 1.2)
            while (left := until - time.monotonic()) > 0:
                await asyncio.sleep(min(PROGRESS_S, left))
                await self.report(self._job, "progress", {"status": "running", "progress": 0.5})
            job, self._job = self._job, None
            await self.finish(job)

    async def claim(self) -> dict[str, Any] | None:
        """Claim once."""
        body = {"worker_id": self._id, "worker_type": "main", "gpu_class": self._class}
        found = await self._call.post("claim", "/internal/main/jobs/claim", body, WORKER_KEY)
        job: dict[str, Any] | None = found.get("job")
        if job is not None:
            timings = self._call.timings
            timings.twice += job["musetalk_job_id"] in timings.claimed
            timings.claimed.add(job["musetalk_job_id"])
        return job

    async def finish(self, job: dict[str, Any]) -> None:
        """Report a success."""
        result = {"output_url": f"https://files.example/{job['musetalk_job_id']}.mp4"}
        done = {"status": "succeeded", "progress": 1.0, "metrics": {"total_time": 1.0}}
        await self.report(job, "finish", done | result | {"receipt": {"frames": 1500}})

    async def report(self, job: dict[str, Any], kind: str, body: dict[str, Any]) -> None:
        """Report on a job."""
        path = f"/internal/jobs/{job['musetalk_job_id']}/progress"
        facts = {"phase": "inferring", "worker_id": self._id, "attempt": job["attempt"]}
        await self._call.post(kind, path, facts | body, WORKER_KEY)


def _named(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("musetalk_job_id", "attempt")}


async def submit_for_ever(call: Caller, per_s: float) -> None:
    """Submit jobs at a steady rate, as ten clients."""
    for number in itertools.count():
        body = {"video_url": "https://media.example/v.mp4", "audio_url": f"https://m/{number}.wav"}
        await call.post("submit", "/v1/avatar/jobs", body, ADMIN_KEY)
        await asyncio.sleep(1.0 / per_s)


async def steady(url: str, *, workers: int, job_s: float, seconds: float) -> Timings:
    """Let workers work at their real pace for `seconds` after all have started."""
    async with _session() as session:
        warming, timings = Timings(), Timings()
        call = Caller(session, url, warming)
        tasks = [
            asyncio.create_task(SimulatedWorker(number, call, job_s).run())
            for number in range(workers)
        ]
        tasks.append(asyncio.create_task(submit_for_ever(call, workers / job_s)))
        await asyncio.sleep(job_s + 2.0)
        timings.claimed, call.timings = warming.claimed, timings
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return timings


async def as_fast_as_possible(url: str, *, workers: int, seconds: float) -> tuple[Timings, float]:
    """Let workers claim and finish without a pause. Return the claims per second too."""
    async with _session() as session:
        timings = Timings()
        call = Caller(session, url, timings)
        until = time.monotonic() + seconds

        async def work(number: int) -> None:
            worker = SimulatedWorker(number, call, 0.0)
            while time.monotonic() < until:
                job = await worker.claim()
                if job is not None:
                    await worker.finish(job)

        start = time.monotonic()
        await asyncio.gather(*(work(number) for number in range(workers)))
        return timings, len(timings.seconds["claim"]) / (time.monotonic() - start)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
    )
