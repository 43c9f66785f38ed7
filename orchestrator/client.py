"""The worker's half of the orchestrator protocol (contracts.md, section 2).

`MainClient` and `BufferClient` know the paths and fields of the two worker kinds and share one
interface, `WorkerClient`. What they say is in `messages`, how it is sent in `transport`. A client
belongs to the event loop that first used it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import to_json

from orchestrator.errors import JobGone, MalformedAnswer, RequestRejected
from orchestrator.messages import (
    Claim,
    ClaimedJob,
    Failed,
    FinalReport,
    JobProgress,
    Status,
    Succeeded,
    WorkerProfile,
    WorkerType,
)
from orchestrator.transport import OrchestratorHttp, checked_base_url

GONE_STATUSES = frozenset({404, 409, 410})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Total deadlines of each call in seconds. Progress: contracts.md; the others are guesses well
    below the 30 s of silence after which a worker counts as offline.
    """

    register_s: float = 5.0
    heartbeat_s: float = 5.0
    claim_s: float = 15.0
    progress_s: float = 5.0
    report_s: float = 15.0


class WorkerClient(Protocol):
    """What a worker needs of an orchestrator. Every call raises `OrchestratorError` types."""

    async def register(self) -> None:
        """Introduce the worker. Optional in the protocol: a refusal is no reason to stop."""

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """Say that the worker is alive. Returns only when the orchestrator accepted it."""

    async def claim(self) -> Claim:
        """Ask for one job, once."""

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Report a running job. Raises `JobGone` when it is not this worker's any more."""

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """Build the request that ends a job."""

    async def send_report(self, report: FinalReport) -> None:
        """Send a final report once. Raises `JobGone` when nobody wants it any more."""

    async def aclose(self) -> None:
        """Close the connections."""


class MainClient:
    """The protocol of main, transient and expensive workers."""

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def register(self) -> None:
        """See `WorkerClient`."""
        body = {
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
            "provider": self._profile.provider,
            "capacity": self._profile.capacity,
        }
        path = f"/internal/main/workers/{_segment(self._profile.worker_id)}/register"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.register_s)

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """See `WorkerClient`. A main worker's heartbeat has no place for `error`."""
        body = {
            "status": status,
            "current_job_id": current_job_id,
            "provider": self._profile.provider,
            "gpu_class": self._profile.gpu_class,
            "worker_type": self._profile.worker_type,
            "system_info": dict(self._profile.system_info),
        }
        path = f"/internal/main/workers/{_segment(self._profile.worker_id)}/heartbeat"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.heartbeat_s)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        body = {
            "worker_id": self._profile.worker_id,
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
        }
        answer = await self._http.post(
            "/internal/main/jobs/claim", _encode(body), timeout_s=self._timeouts.claim_s
        )
        return _read_claim(self._http, answer, id_field="musetalk_job_id")

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """See `WorkerClient`."""
        body = self._report_body(
            status="running",
            progress=progress.fraction,
            phase=progress.phase,
            metrics=progress.metrics,
            config_label=progress.config_label,
            batch_size=progress.batch_size,
        )
        await _post_about_job(
            self._http, _progress_path(job), body, timeout_s=self._timeouts.progress_s
        )

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`."""
        if isinstance(end, Succeeded):
            body = self._report_body(
                status="succeeded",
                progress=1.0,
                phase="completed",
                metrics=end.metrics,
                output_url=end.output_url,
                config_label=config_label,
                batch_size=batch_size,
            )
        else:
            body = self._report_body(
                status="failed",
                progress=end.fraction,
                phase="failed",
                error=end.error,
                config_label=config_label,
                batch_size=batch_size,
            )
        return FinalReport(job.job_id, _progress_path(job), body)

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await _post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()

    def _report_body(
        self,
        *,
        status: str,
        progress: float,
        phase: str,
        metrics: Mapping[str, JsonValue] | None = None,
        error: str | None = None,
        **optional: JsonValue,
    ) -> str:
        """Return the body of a progress call; the protocol's optional fields only when known."""
        body: dict[str, JsonValue] = {
            "status": status,
            "progress": progress,
            "phase": phase,
            "worker_id": self._profile.worker_id,
            "metrics": None if metrics is None else dict(metrics),
            "error": error,
        }
        body.update({name: value for name, value in optional.items() if value is not None})
        return _encode(body)


class BufferClient:
    """The protocol of buffer workers. It knows no registration and no progress."""

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def register(self) -> None:
        """Do nothing: a buffer worker introduces itself with its first heartbeat."""

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """See `WorkerClient`. A buffer worker's heartbeat has no place for the job."""
        body = {
            "status": status,
            "gpu_class": self._profile.gpu_class,
            "capacity": self._profile.capacity,
            "error": error,
        }
        path = f"/internal/buffer/workers/{_segment(self._profile.worker_id)}/heartbeat"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.heartbeat_s)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        answer = await self._http.post(
            "/internal/buffer/jobs/claim",
            _encode({"worker_id": self._profile.worker_id}),
            timeout_s=self._timeouts.claim_s,
        )
        return _read_claim(self._http, answer, id_field="buffer_job_id")

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Do nothing: only the end of a buffer job is reported."""

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`. Buffer reports have no place for label and batch size."""
        succeeded = end if isinstance(end, Succeeded) else None
        body: dict[str, JsonValue] = {
            "status": "succeeded" if succeeded else "failed",
            "error": end.error if isinstance(end, Failed) else None,
            "output_url": succeeded.output_url if succeeded else None,
            "metrics": dict(succeeded.metrics) if succeeded else None,
        }
        path = f"/internal/buffer/jobs/{_segment(job.job_id)}/status"
        return FinalReport(job.job_id, path, _encode(body))

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await _post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()


async def _post_about_job(
    http: OrchestratorHttp, path: str, body: str, *, timeout_s: float
) -> None:
    try:
        await http.post(path, body, timeout_s=timeout_s)
    except RequestRejected as exc:
        if exc.status_code in GONE_STATUSES:
            raise JobGone(exc.message, status_code=exc.status_code) from exc
        raise


def _progress_path(job: ClaimedJob) -> str:
    return f"/internal/jobs/{_segment(job.job_id)}/progress"


def _segment(identifier: str) -> str:
    """Return `identifier` as one path segment. Ids are untrusted: `..` must not climb, and dots
    are not touched by `quote`.
    """
    if set(identifier) <= {"."}:
        return identifier.replace(".", "%2E")
    return quote(identifier, safe="")


def _encode(body: Mapping[str, object]) -> str:
    """Return compact JSON. NaN and infinity, which JSON lacks, become null."""
    return to_json(body, inf_nan_mode="null").decode()


def _read_claim(http: OrchestratorHttp, answer: bytes, *, id_field: str) -> Claim:
    try:
        fields = _ClaimAnswer.model_validate_json(answer)
    except ValidationError as exc:
        # `from None`: the validation error would quote the answer, signed addresses and all.
        kinds = sorted({error["type"] for error in exc.errors(include_input=False)})
        raise MalformedAnswer(f"the answer to a claim cannot be read: {', '.join(kinds)}") from None
    error = http.without_secrets(fields.error) if fields.error else None
    if fields.job is None:
        return Claim(None, error)
    job_id = fields.job.get(id_field)
    if isinstance(job_id, int) and not isinstance(job_id, bool):
        job_id = str(job_id)
    if not isinstance(job_id, str) or not job_id:
        raise MalformedAnswer(f"a claimed job has no usable {id_field}, so nothing can be reported")
    return Claim(ClaimedJob(job_id, fields.job), error)


class _ClaimAnswer(BaseModel):
    """The answer to either claim; fields that a newer orchestrator adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: dict[str, JsonValue] | None
    error: str | None = None


__all__ = [
    "BufferClient",
    "Claim",
    "ClaimedJob",
    "Failed",
    "FinalReport",
    "JobProgress",
    "MainClient",
    "OrchestratorHttp",
    "Status",
    "Succeeded",
    "Timeouts",
    "WorkerClient",
    "WorkerProfile",
    "WorkerType",
    "checked_base_url",
]
