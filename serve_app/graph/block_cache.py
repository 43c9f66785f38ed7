"""The encoded blocks of one job, by reference, for as long as its segments need them."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from musetalk_pipeline.plan import Block, FramePlan


@dataclass(slots=True)
class EncodedBlock:
    """A block that a Generator, or an earlier job, has encoded.

    `avatar`: the response, or reference, that holds its AvatarBlock. `pool`: the one that encoded
    it; None if it was not encoded for this job. `is_counted`: whether its costs have been.
    """

    avatar: Any
    pool: str | None
    is_counted: bool = False


@dataclass(slots=True)
class BlockRequest:
    """A block to encode.

    `is_first`: the job's first segment draws on it. `avoid`: pools that failed. `pool`: the one
    that was given it. `held_s`: how long it held a replica of that pool. `is_paid`: whether a
    receipt has that time.
    """

    block: Block
    is_first: bool = False
    avoid: frozenset[str] = frozenset()
    pool: str | None = None
    held_s: float = 0.0
    is_paid: bool = False


@dataclass(slots=True, eq=False)
class CachedBlock:
    """One block that is being encoded, or has been, and how many segments use it now."""

    request: BlockRequest
    encoding: "asyncio.Task[EncodedBlock]"
    uses: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def index(self) -> int:
        """The block's index in the plan."""
        return self.request.block.index

    async def encoded(self) -> EncodedBlock:
        """Wait for the encoding, which goes on if this is cancelled."""
        return await asyncio.shield(self.encoding)


class BlockCache:
    """The blocks of one job. A block that is evicted, or may be broken, is encoded again."""

    def __init__(
        self,
        plan: FramePlan,
        encode: Callable[[BlockRequest], Coroutine[Any, Any, EncodedBlock]],
        max_blocks: int,
    ) -> None:
        """`encode` encodes a block, or finds one that was encoded before."""
        self._blocks = plan.blocks
        self._encode = encode
        self._max_blocks = max_blocks
        self._uses_left = plan.uses()
        self._cached: dict[int, CachedBlock] = {}

    def acquire(
        self, index: int, *, is_first: bool = False, avoid: frozenset[str] = frozenset()
    ) -> CachedBlock:
        """Return a block for one segment; begin to encode it unless it is cached."""
        block = self._cached.get(index)
        if block is None:
            request = BlockRequest(self._blocks[index], is_first, avoid)
            encoding = asyncio.create_task(self._encode(request))
            encoding.add_done_callback(_note_error)
            block = self._cached[index] = CachedBlock(request, encoding)
            self._evict()
        block.uses += 1
        block.last_used = time.monotonic()
        return block

    def expect_another(self, index: int) -> None:
        """Count one more segment that draws on a block, because a segment has been cut."""
        self._uses_left[index] += 1

    def release(self, block: CachedBlock) -> None:
        """End the use of a block by a segment that is done; the last use frees the block."""
        block.uses -= 1
        self._uses_left[block.index] -= 1
        if self._uses_left[block.index] <= 0:
            self._cached.pop(block.index, None)

    def discard(self, block: CachedBlock) -> None:
        """End the use of a block that may be broken; the next `acquire` encodes it again."""
        block.uses -= 1
        if self._cached.get(block.index) is block:
            del self._cached[block.index]
        if not block.uses:
            block.encoding.cancel()

    async def close(self) -> None:
        """End the encodings that are still running."""
        encodings = [block.encoding for block in self._cached.values()]
        self._cached.clear()
        for encoding in encodings:
            encoding.cancel()
        if encodings:
            await asyncio.wait(encodings)

    def _evict(self) -> None:
        idle = sorted(
            (block for block in self._cached.values() if block.uses == 0),
            key=lambda block: block.last_used,
        )
        for block in idle[: max(0, len(self._cached) - self._max_blocks)]:
            del self._cached[block.index]


def _note_error(encoding: "asyncio.Task[EncodedBlock]") -> None:
    """Mark the error as seen, in case no segment waits for it any more."""
    if not encoding.cancelled():
        encoding.exception()
