"""The least average speed of a download, as a deadline that every byte postpones.

A hostile server may send headers, redirects or nothing at all as slowly as it sends a body. A
deadline covers all of these.
"""

from __future__ import annotations


class Pace:
    """The time at which a transfer that began at `now` has been too slow.

    A byte adds `1 / bytes_per_s` seconds. The transfer begins with a credit of `window_s` seconds,
    which is also the largest credit, so that a fast start does not pay for a slow end.

    Args:
        bytes_per_s: the least average; 0 turns the rule off.
        window_s: the seconds over which the average is taken.
        now: the time of any clock, in seconds.
    """

    def __init__(self, bytes_per_s: float, window_s: float, now: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._window_s = window_s
        self._until = now + window_s

    @property
    def deadline(self) -> float | None:
        """When the transfer fails unless more bytes are received; None if it never does."""
        return self._until if self._bytes_per_s else None

    def add(self, n_bytes: int, now: float) -> None:
        """Count bytes that were received at `now`."""
        if self._bytes_per_s:
            self._until = min(self._until + n_bytes / self._bytes_per_s, now + self._window_s)

    def pause(self, seconds: float) -> None:
        """Leave out seconds that are not the server's fault."""
        self._until += seconds
