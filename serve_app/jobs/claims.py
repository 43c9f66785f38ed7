"""Counts how often an orchestrator has handed out the same job to this worker.

An orchestrator may hand out a job again while its first claim still runs here, for example after
heartbeats were lost. It then refuses the reports of the first claim, but not those of the second.
So a job may be cancelled only when none of its claims is left, and its outputs go to the addresses
of the newest claim.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.messages import OutputAddresses


class ClaimCounts:
    """The claims that run in this process, and those of them that the orchestrator revoked."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()
        self._revoked: Counter[str] = Counter()
        self._outputs: dict[str, OutputAddresses] = {}

    @contextmanager
    def running(self, job_id: str, output: OutputAddresses | None = None) -> Iterator[None]:
        """Count one claim of a job for as long as the context lasts."""
        self._running[job_id] += 1
        if output is not None:
            self._outputs[job_id] = output
        try:
            yield
        finally:
            self._running[job_id] -= 1
            if not self._running[job_id]:
                del self._running[job_id], self._revoked[job_id]
                self._outputs.pop(job_id, None)

    def output(self, job_id: str) -> OutputAddresses | None:
        """Return where the newest claim of a job wants its outputs; None if it does not say."""
        return self._outputs.get(job_id)

    def revoke(self, job_id: str) -> bool:
        """Count a revoked claim. Return whether no other claim of the job is left."""
        self._revoked[job_id] += 1
        return self._revoked[job_id] >= self._running[job_id]
