"""The waiting calls of several jobs, in a fair order.

Each job gets an equal share of the frames, or a share in proportion to its weight. The method is
start-time fair queueing: a call starts, in virtual time, where the one before it of the same job
ended, and it ends as many frames later as it has. The call that starts first comes first. A job
that had nothing to do joins at the present virtual time, so it neither catches up nor waits behind
those that have been served before. The shares are those of deficit round robin; unlike its rounds,
the order can be read as far ahead as a scheduler needs it without serving anybody.
"""

import bisect
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something of a job that waits.

    `rank`: within its job, the lowest comes first. `number`: the order of arrival, unique.
    """

    job_id: str
    frames: int
    rank: int = 0
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def place(self) -> tuple[int, int]:
        """What the items of one job are ordered by."""
        return self.rank, self.number


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(slots=True)
class _Line(Generic[ItemT]):
    """The items of one job. `starts_at`: of the next one, in virtual time."""

    starts_at: float
    weight: float = 1.0
    items: list[ItemT] = field(default_factory=list)

    def tagged(self) -> Iterator[tuple[float, int, ItemT]]:
        starts_at = self.starts_at
        for item in self.items:
            yield starts_at, item.number, item
            starts_at += item.frames / self.weight


class FairQueue(Generic[ItemT]):
    """Items of jobs; each item is in it once."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[ItemT]] = {}
        self._weights: dict[str, float] = {}
        self._now = 0.0  # the virtual time at which the item that was taken last started

    def __len__(self) -> int:
        return sum(len(line.items) for line in self._lines.values())

    def push(self, item: ItemT) -> None:
        """Add an item."""
        line = self._lines.get(item.job_id)
        if line is None:
            line = self._lines[item.job_id] = _Line(self._now, self._weight_of(item.job_id))
        if not line.items:
            line.starts_at = max(line.starts_at, self._now)
        bisect.insort(line.items, item, key=lambda one: one.place)

    def in_order(self) -> Iterator[ItemT]:
        """Yield the items in the order in which they should be taken. Change nothing meanwhile."""
        lines = [line.tagged() for line in self._lines.values() if line.items]
        for _, _, item in heapq.merge(*lines):
            yield item

    def take(self, item: ItemT) -> None:
        """Remove an item that is served now, and count its frames for its job."""
        line = self._lines[item.job_id]
        line.items.remove(item)
        self._now = max(self._now, line.starts_at)
        line.starts_at += item.frames / line.weight
        # A line that is empty and not ahead of the others has no past that matters.
        past = [job for job, one in self._lines.items() if self._is_past(one)]
        for job_id in past:
            del self._lines[job_id]

    def discard(self, item: ItemT) -> None:
        """Remove an item that is not wanted any more, if it is still here."""
        line = self._lines.get(item.job_id)
        if line is not None and item in line.items:
            line.items.remove(item)

    def set_weight(self, job_id: str, weight: float) -> None:
        """Give a job a share in proportion to `weight`, until `forget`. Without this it is 1."""
        if weight <= 0:
            raise ValueError(f"a weight is above 0, not {weight}")
        self._weights[job_id] = weight
        if job_id in self._lines:
            self._lines[job_id].weight = weight

    def forget(self, job_id: str) -> None:
        """Drop what is kept about a job that has ended."""
        self._weights.pop(job_id, None)
        line = self._lines.get(job_id)
        if line is not None and not line.items:
            del self._lines[job_id]

    def _weight_of(self, job_id: str) -> float:
        return self._weights.get(job_id, 1.0)

    def _is_past(self, line: _Line[ItemT]) -> bool:
        return not line.items and line.starts_at <= self._now
