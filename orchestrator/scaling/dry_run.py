"""A provider that rents nothing: it logs what it would do, and its machines are ready at once."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence

from orchestrator.scaling.fleet import Machine, MachineState

logger = logging.getLogger(__name__)


class DryRun:
    """Shows what the configuration would lead to, before it may spend money."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._started: dict[str, tuple[str, float]] = {}

    async def want(self, gpu_class: str, count: int) -> None:
        """Log what would be rented."""
        having = sum(named == gpu_class for named, _ in self._started.values())
        for _ in range(count - having):
            worker_id = f"dry-run-{next(self._numbers)}"
            self._started[worker_id] = gpu_class, self._clock()
            facts = {"worker_id": worker_id, "gpu_class": gpu_class}
            logger.info("a worker would be rented", extra=facts)

    async def have(self) -> Sequence[Machine]:
        """Return the machines that would be there."""
        now = self._clock()
        return tuple(
            Machine(worker_id, gpu_class, MachineState.RUNNING, now - since)
            for worker_id, (gpu_class, since) in self._started.items()
        )

    async def drain(self, worker_ids: Collection[str]) -> None:
        """Log what would be given back."""
        for worker_id in worker_ids:
            if self._started.pop(worker_id, None) is not None:
                logger.info("a worker would be drained", extra={"worker_id": worker_id})

    async def close(self) -> None:
        """Do nothing."""
