"""The intervals, waits and habits of a worker of a fleet."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Intervals and waits in seconds.

    `capacity`: jobs at a time under the one identity. `heartbeat_interval_s` and `claim_backoff_s`
    are the contract's; `claim_interval_s` is the pause after a claim that brought no job.
    `progress_repeat_s` bounds how late a cancelled job is noticed (guess). A job that the
    orchestrator does not know is stopped after `unknown_answers` of 404 in a row over at least
    `unknown_s`. `report_wait_s` is how long a place stays taken by a report that is not accepted
    yet (as long as a worker may be silent); `uncalled_s` without a call of `work_once` an idle
    worker leaves its identity to a successor, if one waits for it. `legacy_size_source`: claims'
    sizes are ignored.

    Raises:
        ValueError: an interval that no clock can keep.
    """

    capacity: int = 1
    heartbeat_interval_s: float = 5.0
    claim_interval_s: float = 0.0
    claim_backoff_s: tuple[float, ...] = (1.0, 2.0, 4.0)
    progress_interval_s: float = 1.0
    progress_repeat_s: float = 10.0
    unknown_answers: int = 3
    unknown_s: float = 30.0
    report_wait_s: float = 30.0
    cancel_wait_s: float = 30.0
    uncalled_s: float = 30.0
    config_label: str = "default"
    legacy_size_source: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_interval_s < math.inf:
            raise ValueError("the heartbeat interval (POLL_INTERVAL_SEC) must be more than 0 s")
