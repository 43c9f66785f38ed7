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
class CachedBlock:
    """One block that is being encoded, or has been, and how many segments use it now.

    `pool`: the one that encodes it and draws its segments. `prepared` and `avatar`: the responses
    that hold its PreparedBlock and its AvatarBlock.
    """

    index: int
    pool: Pool
    prepared: Any
    avatar: Any
    uses: int = 0
    last_used: float = field(default_factory=time.monotonic)


class BlockCache:
    """The blocks of one job. A block that is evicted, or may be broken, is encoded again."""

    def __init__(
        self,
        plan: FramePlan,
        encode: Callable[[Block], CachedBlock],
        settings: DriverSettings,
    ) -> None:
        """`encode` submits the calls that encode a block."""
        self._blocks = plan.blocks
        self._encode = encode
        self._max_blocks = settings.kept_blocks
        self._uses_left = Counter(segment.block for segment in plan.segments)
        self._cached: dict[int, CachedBlock] = {}

    def acquire(self, index: int) -> CachedBlock:
        """Return a block for one segment; submit its encoding unless it is cached."""
        block = self._cached.get(index)
        if block is None:
            block = self._encode(self._blocks[index])
            self._cached[index] = block
            self._evict()
        block.uses += 1
        block.pool.in_flight += 1
        block.last_used = time.monotonic()
        return block

    def release(self, block: CachedBlock) -> None:
        """End the use of a block by a segment that is done; the last use frees the block."""
        self._end_use(block)
        self._uses_left[block.index] -= 1
        if self._uses_left[block.index] <= 0:
            self._cached.pop(block.index, None)

    def discard(self, block: CachedBlock) -> None:
        """End the use of a block that may be broken; the next `acquire` encodes it again."""
        self._end_use(block)
        if self._cached.get(block.index) is block:
            del self._cached[block.index]

    def close(self) -> None:
        """Cancel the encodings that are still running."""
        for block in self._cached.values():
            cancel_calls([block.prepared, block.avatar])
        self._cached.clear()

    def _end_use(self, block: CachedBlock) -> None:
        block.uses -= 1
        block.pool.in_flight -= 1

    def _evict(self) -> None:
        idle = sorted(
            (block for block in self._cached.values() if block.uses == 0),
            key=lambda block: block.last_used,
        )
        for block in idle[: max(0, len(self._cached) - self._max_blocks)]:
            del self._cached[block.index]
