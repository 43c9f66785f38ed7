"""Logs and counts the end of each job."""

from __future__ import annotations

import logging

from serve_app.contract.outcomes import Failure, Outcome, Progress
from serve_app.jobs.job import Job
from serve_app.telemetry.metrics import JOBS_ENDED

logger = logging.getLogger(__name__)


def log_end(job: Job, outcome: Outcome, last: Progress) -> None:
    """Log and count a job's end. Call it once, when the outcome is stored.

    A fault of the sender is logged at the level of a success, because the operator of this worker
    does not have to act on it.
    """
    facts: dict[str, object] = {"attempt": job.attempt}
    if isinstance(outcome, Failure):
        if outcome.cancelled:
            logger.info("job %s cancelled", job.id, extra=facts)
            JOBS_ENDED.inc(tags={"outcome": "cancelled"})
            return
        JOBS_ENDED.inc(tags={"outcome": "failed"})
        level = logging.INFO if outcome.status_code < 500 else logging.ERROR
        text = "job %s failed (%s): %s"
        facts["stage"] = outcome.stage
        logger.log(level, text, job.id, outcome.code, outcome.error_message, extra=facts)
        return
    JOBS_ENDED.inc(tags={"outcome": "succeeded"})
    logger.info(
        "job %s succeeded: %d frames in %.1f s, engine %s",
        job.id,
        last.frames_total,
        outcome.metrics.get("total_time", 0.0),
        outcome.metrics.get("engine"),
        extra=facts,
    )
