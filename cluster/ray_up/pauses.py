"""When the next machine of a node type may be asked for.

Ray's autoscaler repeats a launch that fails every 5 s without end. The pauses are therefore kept
here: they double from failure to failure, and end with the first machine that is rented.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

FIRST_S = 20.0
LONGEST_S = 900.0
JITTER = 0.2  # two clusters that fail together do not come back together


class Pauses:
    """The pauses of all node types. May be used from several threads."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._spread = clock, spread
        self._lock = threading.Lock()
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._reasons: dict[str, str] = {}

    def left_s(self, node_type: str) -> float:
        """Return how long no machine of this type is to be asked for; 0 if one may be."""
        with self._lock:
            return max(0.0, self._until.get(node_type, 0.0) - self._clock())

    def reason(self, node_type: str) -> str:
        """Return why the last try failed."""
        with self._lock:
            return self._reasons.get(node_type, "")

    def failed(self, node_type: str, reason: str, at_least_s: float = 0.0) -> float:
        """Note a failure, and return the seconds of the pause that follows."""
        with self._lock:
            count = self._failures[node_type] = self._failures.get(node_type, 0) + 1
            usual = min(FIRST_S * 2.0 ** min(count - 1, 16), LONGEST_S)
            pause: float = max(usual * (1 + JITTER * self._spread()), at_least_s)
            self._until[node_type] = self._clock() + pause
            self._reasons[node_type] = reason
            return pause

    def succeeded(self, node_type: str) -> None:
        """Note that a machine was rented: the next failure begins with the first pause again."""
        with self._lock:
            for kept in (self._failures, self._until, self._reasons):
                kept.pop(node_type, None)
