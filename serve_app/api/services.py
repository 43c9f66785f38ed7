"""The services of one ingress, which its routes and its job runner share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Request

from orchestrator.webhooks.sender import DeliveryLoop
from serve_app.api.draining import Draining
from serve_app.avatars.shelf import AvatarShelf
from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs, cors_origins
from serve_app.fleet.polling import Polling
from serve_app.fleet.pushed_reports import PushedReports
from serve_app.gate.access_control import AccessControl
from serve_app.gate.links import LinkMaker
from serve_app.graph.scaling_loop import Scaling
from serve_app.jobs.batches import BatchService
from serve_app.jobs.service import JobService
from serve_app.outputs.local import LocalStore
from serve_app.streams.streams import Streams
from serve_app.uploads.owners import Owners
from serve_app.uploads.store import UploadStore

ESTIMATES = 4  # at once; each holds two inputs in the scratch of the Preprocessor


class ReadinessCheck(Protocol):
    """Whether every stage runs; `graph.readiness.Readiness` queries Serve."""

    async def is_ready(self) -> bool:
        """Return whether every stage has a running replica."""
        ...

    async def preflight(self) -> dict[str, str]:
        """Let each stage use its dependencies; return `ok` or an error for each of them."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return engine, model version, landmarks, device; empty before the first readiness."""
        ...


class Availability:
    """Whether this worker takes jobs: every stage runs, jobs can be stored, and nobody stops it."""

    def __init__(self, readiness: ReadinessCheck, can_store: Callable[[], Awaitable[bool]]) -> None:
        self._readiness = readiness
        self._can_store = can_store
        self.is_stopping = False
        self.facts = readiness.facts
        self.preflight = readiness.preflight

    async def is_ready(self) -> bool:
        """Return whether a job can run here, even if this worker is about to stop."""
        return await self._readiness.is_ready() and await self._can_store()

    async def may_begin(self) -> bool:
        """Return whether a job may begin. The stop may be requested during the check itself."""
        return await self.is_ready() and not self.is_stopping

    async def status(self) -> str:
        """Return `ok`, `starting` or `stopping`."""
        if self.is_stopping:
            return "stopping"
        return "ok" if await self.is_ready() else "starting"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """What the configuration decides about answers."""

    stack_traces: bool = False
    legacy_size_source: bool = False
    build_commit: str = "unknown"
    build_time: str = "unknown"
    image_digest: str = "unknown"
    cors_origins: tuple[str, ...] = ()
    has_page: bool = False

    @classmethod
    def of(cls, args: AppArgs, env: Environment) -> ApiOptions:
        """Return what configuration and environment say."""
        return cls(
            stack_traces=args.stack_traces,
            legacy_size_source=env.legacy_size_source,
            build_commit=env.build_commit,
            build_time=env.build_time,
            image_digest=env.image_digest,
            cors_origins=cors_origins(args, env),
            has_page=args.studio.enabled,
        )


class OpenCalls:
    """Counts the calls of `POST /generate` that wait for their job."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one call for as long as the context lasts."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes and the job runner of one ingress use.

    `capacity` is the number of jobs that run at the same time, and `previews` has as many places
    for previews; `estimates` has those for estimates. Orchestrators are told `reported_capacity`,
    and jobs are claimed from them only while fewer than `most_claimed()` run. `avatars` and
    `uploads` are None if none are kept, and `webhooks`, `polling` and `reports` are None if the
    environment does not enable them. `streams` is None if the configuration allows none, and
    `scaling` without Ray.
    """

    jobs: JobService
    batches: BatchService
    availability: Availability
    access: AccessControl
    links: LinkMaker
    files: LocalStore
    capacity: int
    reported_capacity: int
    most_claimed: Callable[[], int]
    previews: asyncio.Semaphore
    owners: Owners
    options: ApiOptions = field(default_factory=ApiOptions)
    avatars: AvatarShelf | None = None
    uploads: UploadStore | None = None
    webhooks: DeliveryLoop | None = None
    polling: Polling | None = None
    reports: PushedReports | None = None
    streams: Streams | None = None
    scaling: Scaling | None = None
    estimates: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ESTIMATES))
    open_calls: OpenCalls = field(default_factory=OpenCalls)
    draining: Draining = field(default_factory=Draining)

    def attach(self, app: FastAPI) -> None:
        """Let the routes that are included in `app` use these services."""
        app.state.lipsync_services = self


async def attached_services(request: Request) -> Services:
    """Return the services of the application that the request is for."""
    services: Services = request.app.state.lipsync_services
    return services


ServicesDep = Annotated[Services, Depends(attached_services)]
