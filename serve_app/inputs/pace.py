"""The least average pace of a download, as a deadline that every byte moves.

A deadline, because a hostile server may send headers, redirects or nothing at all as slowly as it
sends a body: whatever it is that takes the time, the deadline comes.
"""

from __future__ import annotations


class Pace:
    """When a transfer that began at `now` has been too slow.

    A byte is worth `1 / bytes_per_s` seconds. The transfer begins with a credit of `window_s`
    seconds and never has more, so that a fast start does not pay for a slow end.

    Args:
        bytes_per_s: the least average; 0 turns the rule off.
        window_s: the seconds over which the average is taken.
        now: any clock, in seconds.
    """

    def __init__(self, bytes_per_s: float, window_s: float, now: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._window_s = window_s
        self._until = now + window_s

    @property
    def deadline(self) -> float | None:
        """When the transfer has failed unless more bytes come; None: never."""
        return self._until if self._bytes_per_s else None

    def came(self, n_bytes: int, now: float) -> None:
        """Count bytes that came at `now`."""
        if self._bytes_per_s:
            self._until = min(self._until + n_bytes / self._bytes_per_s, now + self._window_s)

    def pause(self, seconds: float) -> None:
        """Leave out seconds for which the other side is not to blame."""
        self._until += seconds
