"""The conversion between rows of the store and the jobs, progress and outcomes of an ingress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import sqlalchemy as sa

from orchestrator.job_api.described import JobStatus
from orchestrator.store.states import JobState, status_of
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import Job, Origin, PhaseEvent

Row = sa.RowMapping | Mapping[str, Any]


def job_of(row: Row, *, lost_attempt_id: str | None = None) -> Job:
    """Return a row of both tables. A `queue_position` that the statement did not read is None."""
    return Job(
        id=row["id"],
        request=JobRequest(
            musetalk_job_id=row["id"],
            video_url=row["video_url"],
            audio_url=row["audio_url"],
            aspect_ratio=row["aspect_ratio"],
            resolution=row["resolution"],
            params=row["params"] or {},
        ),
        origin=Origin(row["origin"]),
        status=cast("JobStatus", status_of(JobState(row["state"]))),
        created=row["created_at"],
        updated=row["updated_at"],
        run=row["run"],
        number=row["attempt"],
        attempt=row["attempt"] - row["uncounted"],
        attempt_id=row["worker_id"],
        lost_attempt_id=lost_attempt_id,
        progress=_progress(row),
        outcome=_outcome(row),
        metadata=row["metadata"],
        warnings=tuple(row["warnings"]),
        queue_job_id=row["queue_job_id"],
        queue_position=row.get("queue_position"),
    )


def counts_of(progress: Progress) -> dict[str, Any]:
    """Return what a column of JSON has of the progress, in addition to fraction and phase."""
    fields = asdict(progress)
    return {name: fields[name] for name in fields if name not in ("phase", "fraction")}


def ended_columns(outcome: Outcome, progress: Progress) -> dict[str, Any]:
    """Return the columns of a job that has ended."""
    columns: dict[str, Any] = progress_columns(progress)
    if isinstance(outcome, Success):
        return {**columns, "output_url": outcome.output_url, "metrics": outcome.metrics}
    return {**columns, **failed_columns(outcome)}


def failed_columns(failure: Failure) -> dict[str, Any]:
    """Return the columns that say why a job ended."""
    facts = asdict(failure)
    return {"error": facts.pop("error_message"), "failure": facts}


def progress_columns(progress: Progress) -> dict[str, Any]:
    """Return the columns of a job's progress."""
    return {
        "progress": progress.fraction,
        "phase": progress.phase,
        "counts": counts_of(progress),
    }


def event_of(row: Row, uncounted: int) -> PhaseEvent:
    """Return a change of phase. `uncounted` attempts of the job do not count in this run."""
    facts = dict(row["facts"])
    progress = Progress(phase=Phase(facts.pop("phase")), **facts)
    return PhaseEvent(row["number"], row["attempt"] - uncounted, row["happened_at"], progress)


def phase_facts(progress: Progress) -> dict[str, Any]:
    """Return a change of phase as an event has it; see `event_of`."""
    return asdict(progress)


def _progress(row: Row) -> Progress:
    return Progress(phase=Phase(row["phase"]), fraction=row["progress"], **(row["counts"] or {}))


def _outcome(row: Row) -> Outcome | None:
    state = JobState(row["state"])
    if not state.is_terminal:
        return None
    if state is JobState.SUCCEEDED:
        return Success(row["output_url"], row["metrics"], tuple(row["run_warnings"]))
    return Failure(error_message=row["error"], **row["failure"])
