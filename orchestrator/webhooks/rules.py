"""How often and for how long the delivery of a webhook is tried."""

from __future__ import annotations

import random
from dataclasses import dataclass


class DeliveryFailed(Exception):
    """A failed try.

    `status` is the answer's, None if there was none. `retry_after_s` comes from the target; `final`
    if it accepts no more events.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status
        self.retry_after_s, self.final = retry_after_s, final


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """How long and how often delivery is tried.

    `pauses_s` follows the scheme's recommendation: seconds, then minutes, then hours, each varied
    by up to a fifth. The first try is immediate, so there is one more try than pauses.
    """

    pauses_s: tuple[float, ...] = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0)
    max_age_s: float = 24 * 3600.0
    timeout_s: float = 15.0
    max_retry_after_s: float = 3600.0
    concurrent: int = 8

    @property
    def lease_s(self) -> float:
        """Seconds that one try may take before another process may try."""
        return 2 * self.timeout_s + 5.0

    def pause_s(self, failure: DeliveryFailed, tries: int, age_s: float) -> float | None:
        """Return the pause after a failed try; None if there is no next one.

        Args:
            tries: how many there were, this one included.
            age_s: seconds since the first try was due.
        """
        if failure.final or tries > len(self.pauses_s):
            return None
        pause_s = self.pauses_s[tries - 1] * random.uniform(0.8, 1.2)
        if failure.retry_after_s is not None:
            pause_s = max(pause_s, min(failure.retry_after_s, self.max_retry_after_s))
        return pause_s if age_s + pause_s <= self.max_age_s else None
