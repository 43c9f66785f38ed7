"""The options of a worker of a fleet: its capacity, intervals and waits."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Intervals and waits in seconds.

    Args:
        capacity: jobs that run at once under the one identity.
        heartbeat_interval_s: between two heartbeats (contract).
        claim_interval_s: the shortest time from a claim that returned no job to the next one.
        claim_wait_s: how long the orchestrator may hold a claim until there is a job, if it
            understands that (docs/protocol.md §9: at most 30). A reverse proxy between the two has
            to let a request take that long.
        claim_backoff_s: the pauses between the tries of one claim (contract).
        progress_interval_s: the shortest pause between two progress reports of the same phase.
        progress_repeat_s: the longest pause between two progress reports. Their answers show that a
            job was cancelled, so this bounds how late it is stopped (guess).
        progress_close_s: how long the last progress reports may take. It is a little more than the
            deadline of one of them.
        unknown_answers, unknown_s: a job is stopped after that many answers of 404 in a row, over
            at least that time.
        report_wait_s: how long a slot waits for its final report to be accepted. A worker may be
            silent that long.
        cancel_wait_s: how long a cancelled job may take to end.
        handover_s: an idle worker without a call of `claim_and_run` for that long hands its
            identity over to a waiting successor.
        config_label: part of every report, to compare configurations.
        has_storage: whether outputs can be stored without an orchestrator's signed addresses.
        legacy_size_source: whether the sizes in claims are ignored.

    Raises:
        ValueError: the heartbeat interval is not a positive number.
    """

    capacity: int = 1
    heartbeat_interval_s: float = 5.0
    claim_interval_s: float = 0.0
    claim_wait_s: float = 20.0
    claim_backoff_s: tuple[float, ...] = (1.0, 2.0, 4.0)
    progress_interval_s: float = 1.0
    progress_repeat_s: float = 10.0
    progress_close_s: float = 6.0
    unknown_answers: int = 3
    unknown_s: float = 30.0
    report_wait_s: float = 30.0
    cancel_wait_s: float = 30.0
    handover_s: float = 30.0
    config_label: str = "default"
    has_storage: bool = True
    legacy_size_source: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_interval_s < math.inf:
            raise ValueError("the heartbeat interval (POLL_INTERVAL_SEC) must be more than 0 s")
