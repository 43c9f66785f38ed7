"""How long a replica of a deployment takes until it serves, as seen in the counts of replicas."""

from __future__ import annotations

from dataclasses import dataclass, field

KEPT = 0.5  # of the average at each new measurement


@dataclass(slots=True)
class LoadTime:
    """The load time of one deployment's replicas.

    It counts from the moment when a replica is asked for, so the wait for a node is part of it.

    `seconds`: the average of what was measured; the assumed time before that.
    """

    seconds: float
    is_measured: bool = False
    _starts: list[float] = field(default_factory=list)  # of the replicas that have yet to serve
    _running: int = 0

    def count(self, running: int, starting: int, now_s: float) -> None:
        """Take in new numbers of replicas; `now_s` is of a monotonic clock."""
        for _ in range(min(running - self._running, len(self._starts))):
            self._measured(now_s - self._starts.pop(0))
        self._running = running
        del self._starts[starting:]  # given up again; Serve ends those that came last
        self._starts += [now_s] * (starting - len(self._starts))

    def waiting_s(self, now_s: float) -> float:
        """Return for how long the oldest replica that starts has been starting; 0 if none does."""
        return now_s - self._starts[0] if self._starts else 0.0

    def _measured(self, seconds: float) -> None:
        kept = KEPT if self.is_measured else 0.0
        self.seconds = kept * self.seconds + (1 - kept) * seconds
        self.is_measured = True
