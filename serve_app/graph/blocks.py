"""The encoded blocks of one job, by reference, for as long as its segments need them."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from musetalk_pipeline.plan import Block, FramePlan
from serve_app.config.settings import DriverSettings
from serve_app.graph.pools import Pool
from serve_app.graph.ray_errors import cancel_calls


@dataclass(slots=True)
class Loan:
    """A block in use by a segment."""

    entry: "_Entry"
    is_first: bool  # the first loan counts the block's seconds

    @property
    def response(self) -> Any:
        """The AvatarBlock, by reference."""
        return self.entry.responses[-1]

    @property
    def prepared(self) -> Any:
        """The PreparedBlock that it is made of, by reference."""
        return self.entry.responses[0]

    @property
    def pool(self) -> Pool:
        """Where the block was encoded, and its segments are drawn."""
        return self.entry.pool


@dataclass(slots=True)
class _Entry:
    block: int
    pool: Pool
    responses: list[Any]
    loans: int = 0
    last_used: float = field(default_factory=time.monotonic)


class BlockShelf:
    """The AvatarBlocks of one job, by reference, for as long as a segment still needs them."""

    def __init__(
        self,
        plan: FramePlan,
        make: Callable[[Block], tuple[Pool, list[Any]]],
        settings: DriverSettings,
    ) -> None:
        self._blocks = plan.blocks
        self._make = make
        self._keep = settings.kept_blocks
        self._uses = Counter(segment.block for segment in plan.segments)
        self._entries: dict[int, _Entry] = {}

    def borrow(self, block: int) -> Loan:
        """Lend a block, made now unless it is on the shelf."""
        entry = self._entries.get(block)
        is_first = entry is None
        if entry is None:
            entry = _Entry(block, *self._make(self._blocks[block]))
            self._entries[block] = entry
            self._evict()
        entry.loans += 1
        entry.pool.in_flight += 1
        entry.last_used = time.monotonic()
        return Loan(entry, is_first)

    def give_back(self, loan: Loan) -> None:
        """End a loan whose segment is done; the last use frees the block."""
        self._end(loan)
        self._uses[loan.entry.block] -= 1
        if self._uses[loan.entry.block] <= 0:
            self._entries.pop(loan.entry.block, None)

    def drop(self, loan: Loan) -> None:
        """End a loan whose block may be broken, so that the next one makes it anew."""
        self._end(loan)
        if self._entries.get(loan.entry.block) is loan.entry:
            del self._entries[loan.entry.block]

    def close(self) -> None:
        """Cancel what is still being made."""
        for entry in self._entries.values():
            cancel_calls(entry.responses)
        self._entries.clear()

    def _end(self, loan: Loan) -> None:
        loan.entry.loans -= 1
        loan.entry.pool.in_flight -= 1

    def _evict(self) -> None:
        idle = sorted(
            (entry for entry in self._entries.values() if entry.loans == 0),
            key=lambda entry: entry.last_used,
        )
        for entry in idle[: max(0, len(self._entries) - self._keep)]:
            del self._entries[entry.block]
