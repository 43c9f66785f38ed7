"""Who waits for a job in this process: told of changes, and counted so that it stays wanted."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Change:
    """Set when a job may have changed since `expect` was called."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def expect(self) -> None:
        """Forget earlier changes. Call it before the job is read, so that none is missed."""
        self._event.clear()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`: other processes change jobs too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()

    def say(self) -> None:
        """Wake whoever waits."""
        self._event.set()


class Changes:
    """Tells those who follow a job in this process that something became of it."""

    def __init__(self) -> None:
        self._followers: defaultdict[str, set[Change]] = defaultdict(set)

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

    def say(self, *job_ids: str) -> None:
        """Tell of changes of these jobs."""
        for job_id in job_ids:
            for change in self._followers.get(job_id, ()):
                change.say()


class Waiting:
    """The jobs that open connections of this process wait for."""

    def __init__(self) -> None:
        self._callers: Counter[str] = Counter()

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[None]:
        """Count one caller for as long as the context lasts."""
        self._callers[job_id] += 1
        try:
            yield
        finally:
            self._callers[job_id] -= 1
            if not self._callers[job_id]:
                del self._callers[job_id]

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._callers

    @property
    def job_ids(self) -> list[str]:
        """The jobs that are waited for."""
        return list(self._callers)
