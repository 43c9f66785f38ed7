"""Limits on how often one caller may do something: token buckets in memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000  # remembered; the one that was heard of least recently is forgotten first


class RateLimits:
    """Allows each caller `per_minute` calls, and that many at once after a quiet minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = float(per_minute)
        self._per_s = per_minute / 60.0
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, as of when

    def wait_s(self, caller: str) -> int:
        """Count one call. Return 0 if it is allowed, else the seconds until the next one is."""
        now = self._clock()
        level = self._level(caller, now)
        is_allowed = level >= 1.0
        self._buckets[caller] = (level - 1.0 if is_allowed else level, now)
        self._buckets.move_to_end(caller)
        while len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0 if is_allowed else self._seconds(level)

    def seconds_left(self, caller: str) -> int:
        """Return the same as `wait_s`, without counting a call."""
        level = self._level(caller, self._clock())
        return 0 if level >= 1.0 else self._seconds(level)

    def _level(self, caller: str, now: float) -> float:
        level, since = self._buckets.get(caller, (self._size, now))
        return min(self._size, level + (now - since) * self._per_s)

    def _seconds(self, level: float) -> int:
        return max(1, math.ceil((1.0 - level) / self._per_s))
