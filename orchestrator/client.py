"""The worker's half of the orchestrator protocol (contracts.md, section 2).

`MainClient`, `PushedClient` and `BufferClient` know the paths and fields of their kinds of worker
and share one interface, `WorkerClient`. What they say is in `messages`, what their requests are
made of in `calls`, how they are sent in `transport`. A client belongs to the event loop that first
used it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import JsonValue

from orchestrator.calls import (
    encode,
    post_about_job,
    progress_body,
    progress_path,
    read_claim,
    read_heartbeat,
    report_body,
    running_jobs,
    segment,
)
from orchestrator.messages import (
    Claim,
    ClaimedJob,
    Failed,
    FinalReport,
    HeartbeatAnswer,
    JobProgress,
    Status,
    Succeeded,
    WorkerProfile,
    WorkerType,
)
from orchestrator.transport import OrchestratorHttp, checked_base_url

DOWNLOADING_SHARE, INFERENCE_SHARE = 0.05, 0.1  # what the predecessor's first two reports said


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
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """Say that the worker is alive, and which jobs run here. Returns only when the orchestrator
        accepted it.
        """

    async def claim(self) -> Claim:
        """Ask for one job, once."""

    def worded(self, progress: JobProgress) -> JobProgress:
        """Return the progress as this kind of worker says it; a phase of its own may result."""

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Report a running job.

        Raises:
            JobGone, JobUnknown: see `orchestrator.errors`.
        """

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


class _Client:
    """What all kinds do alike: report a job by its `musetalk_job_id`, and send its end."""

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """See `WorkerClient`."""
        body = progress_body(self._profile.worker_id, job, progress)
        await post_about_job(
            self._http, progress_path(job), body, timeout_s=self._timeouts.progress_s
        )

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()


class MainClient(_Client):
    """The protocol of main, transient and expensive workers."""

    async def register(self) -> None:
        """See `WorkerClient`."""
        body = {
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
            "provider": self._profile.provider,
            "capacity": self._profile.capacity,
        }
        path = f"/internal/main/workers/{segment(self._profile.worker_id)}/register"
        await self._http.post(path, encode(body), timeout_s=self._timeouts.register_s)

    async def heartbeat(
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """See `WorkerClient`. A main worker's heartbeat has no place for `error`."""
        body = {
            "status": status,
            "current_job_id": current_job_id,
            "provider": self._profile.provider,
            "gpu_class": self._profile.gpu_class,
            "worker_type": self._profile.worker_type,
            "system_info": dict(self._profile.system_info),
            "jobs": running_jobs(jobs),
        }
        path = f"/internal/main/workers/{segment(self._profile.worker_id)}/heartbeat"
        answer = await self._http.post(path, encode(body), timeout_s=self._timeouts.heartbeat_s)
        return read_heartbeat(answer.body)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        body = {
            "worker_id": self._profile.worker_id,
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
        }
        answer = await self._http.post(
            "/internal/main/jobs/claim", encode(body), timeout_s=self._timeouts.claim_s
        )
        return read_claim(self._http, answer.status, answer.body, id_field="musetalk_job_id")

    def worded(self, progress: JobProgress) -> JobProgress:
        """See `WorkerClient`."""
        return progress

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`."""
        worker_id = self._profile.worker_id
        if isinstance(end, Succeeded):
            body = report_body(
                worker_id,
                job,
                status="succeeded",
                progress=1.0,
                phase="completed",
                metrics=end.metrics,
                output_url=end.output_url,
                config_label=config_label,
                batch_size=batch_size,
            )
        else:
            body = report_body(
                worker_id,
                job,
                status="failed",
                progress=end.fraction,
                phase="failed",
                error=end.error,
                config_label=config_label,
                batch_size=batch_size,
            )
        return FinalReport(job.job_id, progress_path(job), body)


class PushedClient(MainClient):
    """Reports jobs that were pushed to this worker: a main worker's form, the predecessor's words.

    Such a worker neither registers nor beats nor claims; Salad's queue knows whether it is there.
    """

    def worded(self, progress: JobProgress) -> JobProgress:
        """See `WorkerClient`."""
        return in_the_predecessors_words(progress)


class BufferClient(_Client):
    """The protocol of buffer workers. It knows no registration."""

    async def register(self) -> None:
        """Do nothing: a buffer worker introduces itself with its first heartbeat."""

    async def heartbeat(
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """See `WorkerClient`. A buffer worker's heartbeat has no place for one current job."""
        body = {
            "status": status,
            "gpu_class": self._profile.gpu_class,
            "capacity": self._profile.capacity,
            "error": error,
            "jobs": running_jobs(jobs),
        }
        path = f"/internal/buffer/workers/{segment(self._profile.worker_id)}/heartbeat"
        answer = await self._http.post(path, encode(body), timeout_s=self._timeouts.heartbeat_s)
        return read_heartbeat(answer.body)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        answer = await self._http.post(
            "/internal/buffer/jobs/claim",
            encode({"worker_id": self._profile.worker_id}),
            timeout_s=self._timeouts.claim_s,
        )
        return read_claim(self._http, answer.status, answer.body, id_field="buffer_job_id")

    def worded(self, progress: JobProgress) -> JobProgress:
        """See `WorkerClient`."""
        return in_the_predecessors_words(progress)

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
        if job.attempt is not None:
            body["attempt"] = job.attempt
        return FinalReport(
            job.job_id, f"/internal/buffer/jobs/{segment(job.job_id)}/status", encode(body)
        )


def in_the_predecessors_words(progress: JobProgress) -> JobProgress:
    """Return progress as the predecessor's `/generate` said it: 0.05 `downloading` first, 0.1
    `inference` when that begins, and `inferring` with the frames once there are some.
    """
    if progress.phase in ("preparing", "downloading"):
        share = max(DOWNLOADING_SHARE, progress.fraction)
        return replace(progress, phase="downloading", fraction=share, metrics=None)
    fraction = max(INFERENCE_SHARE, progress.fraction)
    if progress.phase == "inferring" and not (progress.metrics or {}).get("frames_done"):
        return replace(progress, phase="inference", fraction=fraction, metrics=None)
    return replace(progress, fraction=fraction)


__all__ = [
    "BufferClient",
    "Claim",
    "ClaimedJob",
    "Failed",
    "FinalReport",
    "HeartbeatAnswer",
    "JobProgress",
    "MainClient",
    "OrchestratorHttp",
    "PushedClient",
    "Status",
    "Succeeded",
    "Timeouts",
    "WorkerClient",
    "WorkerProfile",
    "WorkerType",
    "checked_base_url",
]
