"""What is learnt from the reports of finished jobs, as means in which later reports weigh more.

Learnt are the frames/s of each GPU class, and the frames and the seconds of a job of each client.
"""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_OF_REPORTS = 0.95  # of what was known before stays with each report: some 20 count (a guess)
PRIOR_REPORTS = 2.0  # of one minute each, which the configured speed counts for (a guess)
SECONDS_OF_A_REPORT = 60.0
ENOUGH_JOBS = 4.5  # the weight of five reports, from which on a client has its own mean (a guess)
UNKNOWN_FRAMES = 750.0  # half a minute at 25 frames/s, where nothing is known (a guess)
UNKNOWN_S = 60.0  # that a job takes, where nothing is known (a guess)


@dataclass(frozen=True, slots=True)
class Learnt:
    """A sum over reports and its weight, both fading with each further report.

    The weight of a speed is in seconds, that of the frames or the seconds of a job in jobs.
    """

    total: float = 0.0
    weight: float = 0.0

    def mean(self, otherwise: float) -> float:
        """Return the mean of the reports, or `otherwise` if there are none."""
        return self.total / self.weight if self.weight > 0 else otherwise

    def frames_per_s(self, prior: float) -> float:
        """Return the frames/s; `prior` is the configured figure, which reports outweigh soon."""
        prior_s = PRIOR_REPORTS * SECONDS_OF_A_REPORT
        return (self.total + prior * prior_s) / (self.weight + prior_s)


NOTHING_LEARNT = Learnt()
