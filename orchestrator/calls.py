"""The parts of the requests of both kinds of worker, and the reading of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import from_json, to_json

from orchestrator.errors import CallRejected, JobGone, JobUnknown, MalformedAnswer
from orchestrator.messages import Claim, ClaimedJob, HeartbeatAnswer, ProgressReport
from orchestrator.transport import OrchestratorHttp

GONE_STATUSES = frozenset({409, 410})
UNKNOWN_STATUS = 404
NO_CONTENT = 204


async def post_about_job(http: OrchestratorHttp, path: str, body: str, *, timeout_s: float) -> None:
    """Send a report.

    Raises:
        JobGone: 409 or 410, the job is no longer this worker's.
        JobUnknown: 404, which the orchestrator has been seen to answer for a live job.
        OrchestratorError: as `OrchestratorHttp.post`.
    """
    try:
        await http.post(path, body, timeout_s=timeout_s)
    except CallRejected as exc:
        if exc.status_code in GONE_STATUSES:
            raise JobGone(exc.message, status_code=exc.status_code) from exc
        if exc.status_code == UNKNOWN_STATUS:
            raise JobUnknown(exc.message, status_code=exc.status_code) from exc
        raise


def progress_path(job: ClaimedJob) -> str:
    """Return the path of progress reports, which is the same for both kinds of worker."""
    return f"/internal/jobs/{segment(job.musetalk_job_id)}/progress"


def segment(identifier: str) -> str:
    """Return `identifier` as one path segment.

    Ids are untrusted, and `quote` leaves dots alone, so that `..` would lead to the parent.
    """
    if set(identifier) <= {"."}:
        return identifier.replace(".", "%2E")
    return quote(identifier, safe="")


def encode(body: Mapping[str, object]) -> str:
    """Return compact JSON. NaN and infinity, which JSON does not have, become null."""
    return to_json(body, inf_nan_mode="null").decode()


def progress_body(worker_id: str, job: ClaimedJob, progress: ProgressReport) -> str:
    """Return the body of a report on a running job."""
    return report_body(
        worker_id,
        job,
        status="running",
        progress=progress.fraction,
        phase=progress.phase,
        metrics=progress.metrics,
        config_label=progress.config_label,
        batch_size=progress.batch_size,
    )


def report_body(
    worker_id: str,
    job: ClaimedJob,
    *,
    status: str,
    progress: float,
    phase: str,
    metrics: Mapping[str, JsonValue] | None = None,
    error: str | None = None,
    **optional: JsonValue,
) -> str:
    """Return the body of a progress call, with those optional fields that are known."""
    body: dict[str, JsonValue] = {
        "status": status,
        "progress": progress,
        "phase": phase,
        "worker_id": worker_id,
        "metrics": None if metrics is None else dict(metrics),
        "error": error,
    }
    optional["attempt"] = job.attempt
    body.update({name: value for name, value in optional.items() if value is not None})
    return encode(body)


def running_jobs(jobs: Iterable[ClaimedJob]) -> list[JsonValue]:
    """Return the heartbeat's list of all jobs that run here.

    A job that was handed out twice is listed once, with its later attempt.
    """
    attempts = {job.musetalk_job_id: job.attempt for job in jobs}
    return [{"musetalk_job_id": job_id, "attempt": number} for job_id, number in attempts.items()]


def read_heartbeat(answer: bytes) -> HeartbeatAnswer:
    """Return what the answer to a heartbeat asks for: nothing if it cannot be read."""
    try:
        fields: Any = from_json(answer)
    except ValueError:
        return HeartbeatAnswer()
    if not isinstance(fields, dict):
        return HeartbeatAnswer()
    cancel = fields.get("cancel")
    named = cancel if isinstance(cancel, list) else []
    ids = frozenset(name for name in named if isinstance(name, str))
    return HeartbeatAnswer(
        ids, fields.get("drain") is True, "drain" in fields, fields.get("outputs") is True
    )


def read_claim(http: OrchestratorHttp, status: int, answer: bytes, *, id_field: str) -> Claim:
    """Return the job in the answer to a claim. `{}`, `{"job": {}}`, `null` and 204 mean no job.

    Raises:
        MalformedAnswer: the answer is something else, or its job has no id for its reports.
    """
    if status == NO_CONTENT:
        return Claim(None)
    try:
        fields = _ClaimAnswer.model_validate(_object(answer))
    except ValidationError as exc:
        # `from None`, because the validation error quotes the answer and its signed addresses.
        kinds = sorted({error["type"] for error in exc.errors(include_input=False)})
        raise MalformedAnswer(f"the answer to a claim cannot be read: {', '.join(kinds)}") from None
    error = http.without_secrets(str(fields.error)) if fields.error else None
    if not fields.job:
        return Claim(None, error)
    job_id = fields.job.get(id_field)
    if isinstance(job_id, int) and not isinstance(job_id, bool):
        job_id = str(job_id)
    if not isinstance(job_id, str) or not job_id:
        raise MalformedAnswer(f"a claimed job has no usable {id_field}, so nothing can be reported")
    return Claim(ClaimedJob(job_id, fields.job), error)


def _object(answer: bytes) -> object:
    try:
        fields = from_json(answer)
    except ValueError:
        raise MalformedAnswer("the answer to a claim is not JSON") from None
    return {} if fields is None else fields


class _ClaimAnswer(BaseModel):
    """The answer to a claim. Fields that a newer orchestrator adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: dict[str, JsonValue] | None = None
    error: JsonValue = None  # text by the protocol; another type must not lose the job
