"""Ends jobs that can never be started again, and deletes those that ended long ago."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.config.settings import QueueSettings
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads


@dataclass(frozen=True, slots=True)
class SweepTiming:
    """Seconds between two sweeps, and between two deletions of old jobs."""

    sweep_s: float = 1.0
    forget_s: float = 30.0


class Housekeeping:
    """Sweeps the registry, at most once every few seconds."""

    def __init__(
        self,
        registry: JobRegistry,
        threads: StateThreads,
        queue: QueueSettings,
        timing: SweepTiming = SweepTiming(),
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._queue = queue
        self._timing = timing
        self._swept_at = self._forgot_at = float("-inf")

    async def sweep(self, active: Iterable[str], awaited: Iterable[str]) -> list[str]:
        """End the jobs that can never be started, if it is time to. Return their ids.

        Every slot calls this several times a second, even if all jobs are claimed, or are cancelled
        before they run.

        Args:
            active: jobs that run in this process.
            awaited: jobs that clients of this process wait for.

        Raises:
            StoreUnavailable: the registry cannot be written now.
        """
        if time.monotonic() - self._swept_at <= self._timing.sweep_s:
            return []
        self._swept_at = time.monotonic()
        return await self._threads.write(
            self._registry.sweep, self._queue.max_attempts, tuple(active), tuple(awaited)
        )

    async def forget(self) -> None:
        """Delete the oldest ended jobs beyond the configured number, if it is time to.

        Raises:
            StoreUnavailable: the registry cannot be written now.
        """
        if time.monotonic() - self._forgot_at > self._timing.forget_s:
            self._forgot_at = time.monotonic()
            await self._threads.write(self._registry.forget, self._queue.keep_finished)
