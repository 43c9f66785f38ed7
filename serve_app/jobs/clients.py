"""The clients of this process: they are woken by changes of their job, and keep it alive."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context

from orchestrator.store.errors import StoreUnavailable
from serve_app.jobs.job import Job
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads
from serve_app.jobs.unavailable import UnavailableLog

RENEW_S = 0.5  # between two renewals of the jobs that clients wait for; each one is a write
# The keep-alive that the last client of a job leaves. Another process renews its own within it.
LAST_KEEP_ALIVE_S = 1.5


class Change:
    """Is set when a job may have changed since `expect` was called."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def expect(self) -> None:
        """Forget earlier changes. Call it before the job is read, so that none is missed."""
        self._event.clear()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`, as other processes change jobs too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()

    def set(self) -> None:
        """Wake the waiting client."""
        self._event.set()


class Changes:
    """Wakes the clients that follow a job in this process."""

    def __init__(self) -> None:
        self._followers: defaultdict[str, set[Change]] = defaultdict(set)
        self._has_left_queue = False

    @contextmanager
    def following(self, job_id: str) -> Iterator[Change]:
        """Follow a job for as long as the context lasts."""
        change = Change()
        self._followers[job_id].add(change)
        try:
            yield change
        finally:
            self._followers[job_id].discard(change)
            if not self._followers[job_id]:
                del self._followers[job_id]

    def announce(self, *job_ids: str) -> None:
        """Wake the followers of these jobs."""
        for job_id in job_ids:
            for change in self._followers.get(job_id, ()):
                change.set()

    def leave_queue(self) -> None:
        """Wake the followers of every job, as nothing happens to queued jobs any more."""
        self._has_left_queue = True
        self.announce(*self._followers)

    def are_over(self, job: Job) -> bool:
        """Return whether this process changes the job no more, although it has not ended."""
        return self._has_left_queue and job.status == "queued"


class KeepAlive:
    """Keeps those jobs alive that clients of this process wait for on open connections."""

    def __init__(
        self, registry: JobRegistry, threads: StateThreads, log_unavailable: UnavailableLog
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._log_unavailable = log_unavailable
        self._clients: Counter[str] = Counter()
        self._renewing: asyncio.Task[None] | None = None

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[None]:
        """Count one client of a job for as long as the context lasts."""
        self._clients[job_id] += 1
        self._start_renewing()
        try:
            yield
        finally:
            self._clients[job_id] -= 1
            if not self._clients[job_id]:
                del self._clients[job_id]

    def has_client(self, job_id: str) -> bool:
        """Return whether a client of this process waits for the job."""
        return job_id in self._clients

    @property
    def job_ids(self) -> list[str]:
        """The jobs that clients of this process wait for."""
        return list(self._clients)

    async def leave(self, job_id: str) -> None:
        """Shorten the keep-alive of a job whose last client here has disconnected."""
        if not self.has_client(job_id):
            await self._renew([job_id], LAST_KEEP_ALIVE_S)

    def _start_renewing(self) -> None:
        if self._renewing is None or self._renewing.done():
            # In a context of its own, as it must not be part of the request that comes first.
            self._renewing = asyncio.create_task(self._renew_while_waiting(), context=Context())

    async def _renew_while_waiting(self) -> None:
        while job_ids := self.job_ids:
            await self._renew(job_ids)
            await asyncio.sleep(RENEW_S)

    async def _renew(self, job_ids: list[str], *seconds: float) -> None:
        try:
            await self._threads.write(self._registry.keep_alive, job_ids, *seconds)
        except StoreUnavailable as exc:
            self._log_unavailable(exc)  # beats and sweeps renew the keep-alive too
