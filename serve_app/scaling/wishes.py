"""How a wish for replicas follows what is needed: up at once, and down late.

A deployment shrinks to the most that was needed while it had replicas to spare, and only when that
has lasted for long and it works on nothing. Serve chooses the replicas that end without regard to
their work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many replicas a deployment may have. With `at_most` 0 it is switched off."""

    at_least: int
    at_most: int

    def applied(self, replicas: int) -> int:
        """Return the nearest number within the bounds."""
        return max(self.at_least, min(self.at_most, replicas))


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon replicas come and go; `scaling:` of the configuration explains each number."""

    drain_s: float = 60.0
    idle_loads: float = 5.0
    idle_s: float = 60.0

    def patience_s(self, load_s: float) -> float:
        """Return how long replicas that take so long to load are kept although they are idle."""
        return max(self.idle_s, self.idle_loads * load_s)


@dataclass(frozen=True, slots=True)
class Wish:
    """The replicas that are wanted of a deployment, and since when it has had some to spare.

    `most`: the highest need since `spare_since` (seconds of a monotonic clock).
    """

    replicas: int
    spare_since: float | None = None
    most: int = 0

    def following(
        self, needed: int, bounds: Bounds, *, is_at_work: bool, patience_s: float, now_s: float
    ) -> Wish:
        """Return the next wish. `needed` is within the bounds."""
        wanted = bounds.applied(self.replicas)
        if wanted < self.replicas and is_at_work:
            return self  # it was switched off, and ends what it works on
        if needed >= wanted:
            return Wish(needed)
        if self.spare_since is None:
            return Wish(wanted, now_s, needed)
        most = max(self.most, needed)
        if is_at_work or now_s - self.spare_since < patience_s:
            return replace(self, replicas=wanted, most=most)
        return Wish(most)
