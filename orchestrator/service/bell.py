"""Wakes calls that wait in this process: held claims for a job, readers for news of their job."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

NUDGE = -1  # the number of no ring


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    heard: int  # the number of the last ring that it has had
    woken: asyncio.Future[int]


class Bell:
    """Wakes one waiting claim for each new job, the one that has waited for longest.

    A claim that finds no job for its worker passes the ring on. Each ring has a number, and no
    claim is woken twice by the same one, so that a ring goes round once at most.
    """

    def __init__(self) -> None:
        self._waiters: deque[_Waiter] = deque()
        self.number = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def ring(self, count: int = 1) -> None:
        """Wake up to `count` claims."""
        for _ in range(count):
            self.number += 1
            if not self._wake(self.number):
                return

    def nudge(self, count: int) -> None:
        """Wake `count` claims, those that have waited for longest, which do not pass it on.

        Whether a job is for a worker may change with time alone, when the job overflows.
        """
        for _ in range(min(count, len(self._waiters))):
            self._waiters.popleft().woken.set_result(NUDGE)

    def pass_on(self, number: int) -> None:
        """Wake the next claim that has not had this ring."""
        self._wake(number)

    async def wait(self, heard: int, timeout_s: float) -> int | None:
        """Return the number of a ring after `heard`; None if there was none in time."""
        if self.number > heard:
            return self.number
        waiter = _Waiter(heard, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.woken
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if waiter.woken.done() and not waiter.woken.cancelled():
                self.pass_on(waiter.woken.result())
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self, number: int) -> bool:
        for waiter in self._waiters:
            if waiter.heard < number:
                self._waiters.remove(waiter)
                waiter.woken.set_result(number)
                return True
        return False


class News:
    """Tells readers that a job has changed: those of the job, and those of all jobs."""

    def __init__(self) -> None:
        self._readers: dict[str | None, set[asyncio.Event]] = {}

    def tell(self, job_id: str | None) -> None:
        """Wake the readers of a job, and those of all jobs."""
        for which in {job_id, None}:
            for changed in self._readers.get(which, ()):
                changed.set()

    def tell_all(self) -> None:
        """Wake every reader."""
        for job_id in self._readers:
            self.tell(job_id)

    def open(self, job_id: str | None) -> tuple[asyncio.Event, Callable[[], None]]:
        """Return an event that is set by each change, and what closes it. None: of all jobs."""
        changed = asyncio.Event()
        self._readers.setdefault(job_id, set()).add(changed)

        def close() -> None:
            readers = self._readers.get(job_id, set())
            readers.discard(changed)
            if not readers:
                self._readers.pop(job_id, None)

        return changed, close

    def __len__(self) -> int:
        return sum(map(len, self._readers.values()))
