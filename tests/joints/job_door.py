"""The job API on a real socket over a real registry; only what drives the graph is a double."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn
from starlette.types import ASGIApp

from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.measure import JobSize
from orchestrator.store.errors import StoreUnavailable
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs, PoolSettings, QueueSettings, StudioSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.gate.access_control import AccessControl, GuessLimiter
from serve_app.gate.callers import CallerRules
from serve_app.graph.transfers import Assignment, Finished
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateTiming
from tests.waiting import until_async

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, about its use of pydantic
    from serve_app.api.application import build_api
    from serve_app.api.composition import assemble
    from serve_app.jobs.service import JobService, JobTiming

SIZE = JobSize(250, Fraction(25), 640, 480, 50, to_draw=250, drawn=250, avatar=250)
NOTE = "x" * 20_000  # so that storing an end takes room
# A worker refuses a job whose write has to wait for longer than 4 s, as it may behind a disk that
# stalls. Tests of anything else wait.
PATIENT = JobTiming(state=StateTiming(busy_s=30.0, queued_s=30.0))
PHASES = (
    Phase.DOWNLOADING,
    Phase.VALIDATING,
    Phase.INFERRING,
    Phase.ENCODING,
    Phase.UPLOADING,
)


@dataclass
class Graph:
    """What the driver would do to a job: all phases at once, then the video is there.

    With `holds`, a job stays in `inferring` until `go_on` is set.
    """

    results: Path
    holds: bool = False
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    inferring: asyncio.Event = field(default_factory=asyncio.Event)
    ran: list[Assignment] = field(default_factory=list)
    at_work: int = 0
    size: JobSize = SIZE  # of every job that is measured
    metrics: dict[str, Any] = field(default_factory=dict)  # of every job, in addition
    fault: PipelineError | None = None  # what every job fails with

    async def run(self, assignment: Assignment, report: Callable[[Progress], None]) -> Finished:
        self.ran.append(assignment)
        self.at_work += 1
        try:
            for number, phase in enumerate(PHASES):
                report(Progress(phase, number / 10, 5, 10))
                if phase is Phase.INFERRING and self.holds:
                    self.inferring.set()
                    await self.go_on.wait()
            if self.fault is not None:
                raise self.fault
            (self.results / f"{assignment.job_id}.mp4").write_bytes(b"a video")
            url = f"/files/{assignment.job_id}.mp4"
            return Finished(url, {"stage_times": {}, "note": NOTE, **self.metrics})
        finally:
            self.at_work -= 1

    async def measure(self, assignment: Assignment) -> JobSize:
        self.ran.append(assignment)
        if self.holds:
            self.inferring.set()
            await self.go_on.wait()
        return self.size


@dataclass
class Stages:
    """Stands for the deployments behind the ingress: all of them run."""

    async def is_ready(self) -> bool:
        return True

    async def preflight(self) -> dict[str, str]:
        return {"finisher/av": "ok"}

    def facts(self) -> dict[str, Any]:
        return {"engine": "warp", "landmarks": "mesh", "device": "cpu", "batch_size": 4}


class Door:
    """The composed ingress without Ray: all is real but the graph behind it.

    Without a `graph` it takes jobs in and runs none.
    """

    def __init__(
        self,
        folder: Path,
        graph: Graph | None = None,
        queue: QueueSettings | None = None,
        guesses: GuessLimiter | None = None,
        stages: Stages | None = None,
        timing: JobTiming = PATIENT,
        *,
        has_page: bool = True,
        **environment: str,
    ) -> None:
        self.path = folder / "state" / "jobs.sqlite3"
        env = read_environment(environment)
        args = AppArgs(
            pools=[PoolSettings(name="cpu")],
            queue=queue or QueueSettings(max_queued_jobs=100_000),
            work_dir=folder / "work",
            result_dir=folder / "results",
            state_dir=folder / "state",
            studio=StudioSettings(enabled=has_page),
        )
        self.services = assemble(args, env, graph, stages or Stages(), timing)  # type: ignore[arg-type]
        if guesses is not None:
            signer = self.services.links.signer
            self.change(access=AccessControl(CallerRules.of(env), signer, guesses))
        self.registry = self.services.jobs.registry
        self.app = build_api(self.services)

    def change(self, **services: object) -> None:
        """Replace some of the services, for the requests that come from here on."""
        self.services = replace(self.services, **services)
        if hasattr(self, "app"):
            self.services.attach(self.app)


# Lets a door send webhooks, also to this machine. The secret is that of the scheme's own examples.
WEBHOOKS_ON = {
    "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "ALLOWED_SOURCE_HOSTS": "127.0.0.1",
}


@contextlib.asynccontextmanager
async def delivering(door: Door) -> AsyncIterator[None]:
    """Let a door send its webhooks."""
    assert door.services.webhooks is not None
    delivery = asyncio.create_task(door.services.webhooks.deliver_forever())
    try:
        yield
    finally:
        delivery.cancel()
        await asyncio.wait({delivery})


@dataclass
class Rig:
    """A door, what is behind it, and a client in front of it."""

    door: Door
    graph: Graph
    client: httpx.AsyncClient

    @property
    def service(self) -> JobService:
        return self.door.services.jobs


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application on loopback, by uvicorn as Serve's proxy runs it; a client of it."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", ws="none", lifespan="off"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until_async(lambda: server.started, "uvicorn has not started")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60
        ) as client:
            yield client
    finally:
        server.should_exit = server.force_exit = True
        await task


@contextlib.asynccontextmanager
async def job_door(
    folder: Path,
    *,
    stages: Stages | None = None,
    timing: JobTiming = PATIENT,
    environment: Mapping[str, str] = {},
    **queue: int | float,
) -> AsyncIterator[Rig]:
    """Serve the job API; end and close everything afterwards."""
    results = folder / "results"
    results.mkdir()
    graph = Graph(results)
    settings = QueueSettings.model_validate(queue)
    door = Door(folder, graph, settings, stages=stages, timing=timing, **environment)
    try:
        async with serving(door.app) as client:
            yield Rig(door, graph, client)
    finally:
        door.registry.close()


@contextlib.contextmanager
def lock_held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the file's write lock for as long as the context lasts."""
    script = Path(__file__).with_name("lock_holder.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.stdin.close()
            holder.wait()


@contextlib.contextmanager
def disk_full(registry: JobRegistry) -> Iterator[None]:
    """Let the registry's file grow no further, as on a full disk (SQLITE_FULL)."""
    filling = sa.table("filling", sa.column("x", sa.LargeBinary))
    with registry.file.write() as tx:
        tx.execute(sa.text("CREATE TABLE filling (x BLOB)"))
    with registry.file.write() as tx:
        pages = tx.execute(sa.text("PRAGMA page_count")).scalar()

    def bound(connection: sa.Connection) -> None:  # each connection has a bound of its own
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(registry.file.engine, "begin", bound)
    for size in (4096, 1024, 128, 16):  # what is free within the file goes too
        with contextlib.suppress(StoreUnavailable):
            while True:
                with registry.file.write() as tx:
                    tx.execute(filling.insert(), x=bytes(size))
    try:
        yield
    finally:
        pages = 1073741823
        with registry.file.write():
            sa.event.remove(registry.file.engine, "begin", bound)
        registry.file.engine.dispose()  # the next connections have no bound


def body(job_id: str = "a", **changes: object) -> dict[str, object]:
    """Return a request that differs from others by its id alone."""
    return {
        "musetalk_job_id": job_id,
        "video_url": "https://h.example/v.mp4",
        "audio_url": "https://h.example/a.wav",
        **changes,
    }


def request(job_id: str = "a") -> JobRequest:
    """Return the same as a value."""
    return JobRequest.model_validate(body(job_id))
