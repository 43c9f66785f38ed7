"""A bounded number of places that jobs take in turn, fairly by frames."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serve_app.scheduling.fair_queue import FairQueue, Item


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter(Item):
    size: float
    entered: "asyncio.Future[None]"


class FairGate:
    """Lets at most `places` items through at a time, and those of at most `size` together.

    Frames decide what is fair. The size of an item is in any unit; without one it is its frames.

    Args:
        always_one: let one item of every job through in any case, so that a job that has just
            begun does not wait for those that fill the gate. Then at most one item of each job is
            above the bounds.
    """

    def __init__(
        self, places: int, *, size: float = float("inf"), always_one: bool = False
    ) -> None:
        self._places = places
        self._most_size = size
        self._always_one = always_one
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._inside: Counter[str] = Counter()
        self._size_inside = 0.0

    @property
    def inside(self) -> int:
        """How many items are through and have not left."""
        return self._inside.total()

    def __len__(self) -> int:
        return len(self._queue)

    def others_wait(self, job_id: str) -> bool:
        """Return whether an item of another job waits."""
        return any(item.job_id != job_id for item in self._queue.in_order())

    def set_places(self, places: int) -> None:
        """Change the number of places. Those that are inside stay."""
        self._places = places
        self._let_in()

    @asynccontextmanager
    async def turn(self, job_id: str, frames: int) -> AsyncIterator[None]:
        """Wait for a place and hold it as long as the context lasts."""
        await self.enter(job_id, frames)
        try:
            yield
        finally:
            self.leave(job_id, frames)

    async def enter(self, job_id: str, frames: int, size: float | None = None) -> None:
        """Wait for a place; `leave` gives it back. If this is cancelled, no place is held."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        size = frames if size is None else size
        waiter = _Waiter(job_id=job_id, frames=frames, size=size, entered=entered)
        self._queue.push(waiter)
        self._let_in()
        try:
            await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled():
                self.leave(job_id, size)
            else:
                self._queue.discard(waiter)
                self._let_in()  # those behind it may fit
            raise

    def leave(self, job_id: str, size: float) -> None:
        """Give the place of an item of that size back."""
        self._inside[job_id] -= 1
        if not self._inside[job_id]:
            del self._inside[job_id]
        self._size_inside -= size
        self._let_in()

    def resize(self, size: float, to_size: float) -> None:
        """Count an item that is inside with another size than it entered with."""
        self._size_inside += to_size - size
        self._let_in()

    def forget(self, job_id: str) -> None:
        """Drop what is kept about a job that has ended."""
        self._queue.forget(job_id)

    def _let_in(self) -> None:
        is_full = False
        for waiter in list(self._queue.in_order()):
            if waiter.entered.done():  # it is being cancelled
                continue
            # The first that does not fit closes the gate, so that small items do not pass it by.
            is_full = is_full or not self._has_room(waiter)
            is_only_one = self._always_one and waiter.job_id not in self._inside
            if is_full and not is_only_one:
                if not self._always_one:
                    return
                continue
            self._queue.take(waiter)
            self._inside[waiter.job_id] += 1
            self._size_inside += waiter.size
            waiter.entered.set_result(None)

    def _has_room(self, waiter: _Waiter) -> bool:
        # An item that is larger than the bound enters when nothing else is inside.
        fits = self._size_inside + waiter.size <= self._most_size or not self._size_inside
        return self.inside < self._places and fits
