"""One try at a segment: what was given to whom, and for how long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from musetalk_pipeline.plan import Segment
from serve_app.graph.block_cache import BlockRequest, CachedBlock


@dataclass(slots=True)
class SegmentTry:
    """One try at a segment. `drawn_in`: the pool that was given it. `held_s`: how long it held a
    replica of that pool.
    """

    segment: Segment
    block: CachedBlock
    avoid: frozenset[str]
    is_first: bool
    drawn_in: str | None = None
    held_s: float = 0.0

    def held_in_vain(self) -> dict[str, float]:
        """Return for how long the failed try held replicas, by pool. Its block counts once, however
        many tries fail with it, and not at all if an earlier segment was drawn on it.
        """
        held_s: dict[str, float] = {}
        request = self.block.request
        if request.pool is not None and not request.is_paid:
            request.is_paid = True
            held_s[request.pool] = request.held_s
        if self.drawn_in is not None:
            held_s[self.drawn_in] = held_s.get(self.drawn_in, 0.0) + self.held_s
        return held_s


@contextmanager
def timed(holder: SegmentTry | BlockRequest) -> Iterator[None]:
    """Note for how long a replica was held, however the call ends."""
    began = time.monotonic()
    try:
        yield
    finally:
        holder.held_s = time.monotonic() - began


def pools_of(attempt: SegmentTry) -> frozenset[str]:
    """Return the pools that may be at fault for a try that failed."""
    pools = (attempt.drawn_in, attempt.block.request.pool)
    return frozenset(pool for pool in pools if pool is not None)
