"""The worker's half of the orchestrator protocol (docs/protocol.md).

`MainClient`, `PushedClient` and `BufferClient` implement the paths and fields of their kinds of
worker. They share one interface, `WorkerClient`. The values of the calls are in `messages`, the
parts of requests and answers in `calls`, and the sending in `transport`. A client belongs to the
event loop that used it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    FailureReport,
    FinalReport,
    HeartbeatAnswer,
    OutputAddresses,
    ProgressReport,
    Status,
    SuccessReport,
    WorkerProfile,
    WorkerType,
)
from orchestrator.transport import Answer, OrchestratorHttp, checked_base_url

Body = Mapping[str, JsonValue]

DOWNLOADING_SHARE, INFERENCE_SHARE = 0.05, 0.1  # of the predecessor's first two reports


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The total deadline of each call, in seconds.

    That of progress is the contract's. The others are guesses, well below the 30 s of silence after
    which a worker counts as offline.
    """

    register_s: float = 5.0
    heartbeat_s: float = 5.0
    claim_s: float = 15.0
    progress_s: float = 5.0
    report_s: float = 15.0
    goodbye_s: float = 3.0


class WorkerClient(Protocol):
    """The calls of a worker to an orchestrator. All of them raise `OrchestratorError` types."""

    async def register(self) -> None:
        """Register the worker. This is optional in the protocol, so a refusal does not matter."""

    async def heartbeat(
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """Report that the worker is alive, and which jobs run here. Returns only if the
        orchestrator has accepted that.
        """

    async def claim(self, wait_s: float = 0.0) -> Claim:
        """Claim one job, without a second try.

        The orchestrator may hold its answer for `wait_s` until there is a job. Only one that has
        answered with `has_additions` may be asked to.
        """

    def as_reported(self, report: ProgressReport) -> ProgressReport:
        """Return the report in the phases of this kind of worker."""

    async def progress(self, job: ClaimedJob, report: ProgressReport) -> None:
        """Report the progress of a running job.

        Raises:
            JobGone, JobUnknown: see `orchestrator.errors`.
        """

    def final_report(
        self,
        job: ClaimedJob,
        end: SuccessReport | FailureReport,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """Build the request that ends a job."""

    async def send_report(self, report: FinalReport) -> None:
        """Send a final report once.

        Raises:
            JobGone: the job is cancelled or belongs to another worker.
        """

    async def goodbye(self, reason: str) -> None:
        """Report that the worker ends. Its jobs go back into the queue at once."""

    async def aclose(self) -> None:
        """Close the connections."""


class _Client:
    """What the clients of all kinds of worker share: sending, progress and final reports."""

    _paths: str  # the part of every path that names the kind of worker
    _job_id_field: str  # which id of a claimed job its end is reported to

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def progress(self, job: ClaimedJob, report: ProgressReport) -> None:
        """See `WorkerClient`."""
        body = progress_body(self._profile.worker_id, job, report)
        await post_about_job(
            self._http, progress_path(job), body, timeout_s=self._timeouts.progress_s
        )

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def goodbye(self, reason: str) -> None:
        """See `WorkerClient`. The path is the same for all kinds of worker."""
        path = f"/internal/main/workers/{segment(self._profile.worker_id)}/goodbye"
        await self._http.post(path, encode({"reason": reason}), timeout_s=self._timeouts.goodbye_s)

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()

    async def _heartbeat(self, body: Body) -> HeartbeatAnswer:
        answer = await self._post_as_worker("heartbeat", body, self._timeouts.heartbeat_s)
        return read_heartbeat(answer.body)

    async def _claim(self, body: Body, wait_s: float) -> Claim:
        path = f"/internal/{self._paths}/jobs/claim"
        if wait_s:
            body = {**body, "wait_s": wait_s, "capabilities": dict(self._profile.capabilities)}
        timeout_s = self._timeouts.claim_s + wait_s
        answer = await self._http.post(path, encode(body), timeout_s=timeout_s)
        return read_claim(self._http, answer.status, answer.body, id_field=self._job_id_field)

    async def _post_as_worker(self, call: str, body: Body, timeout_s: float) -> Answer:
        path = f"/internal/{self._paths}/workers/{segment(self._profile.worker_id)}/{call}"
        return await self._http.post(path, encode(body), timeout_s=timeout_s)


class MainClient(_Client):
    """The protocol of main, transient and expensive workers."""

    _paths = "main"
    _job_id_field = "musetalk_job_id"

    async def register(self) -> None:
        """See `WorkerClient`."""
        body: Body = {
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
            "provider": self._profile.provider,
            "capacity": self._profile.capacity,
        }
        await self._post_as_worker("register", body, self._timeouts.register_s)

    async def heartbeat(
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """See `WorkerClient`. The heartbeat of a main worker has no field for `error`."""
        return await self._heartbeat(
            {
                "status": status,
                "current_job_id": current_job_id,
                "provider": self._profile.provider,
                "gpu_class": self._profile.gpu_class,
                "worker_type": self._profile.worker_type,
                "system_info": dict(self._profile.system_info),
                "jobs": running_jobs(jobs),
            }
        )

    async def claim(self, wait_s: float = 0.0) -> Claim:
        """See `WorkerClient`."""
        return await self._claim(
            {
                "worker_id": self._profile.worker_id,
                "worker_type": self._profile.worker_type,
                "gpu_class": self._profile.gpu_class,
            },
            wait_s,
        )

    def as_reported(self, report: ProgressReport) -> ProgressReport:
        """See `WorkerClient`."""
        return report

    def final_report(
        self,
        job: ClaimedJob,
        end: SuccessReport | FailureReport,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`."""
        success = end if isinstance(end, SuccessReport) else None
        body = report_body(
            self._profile.worker_id,
            job,
            status="succeeded" if success else "failed",
            progress=end.fraction if isinstance(end, FailureReport) else 1.0,
            phase="completed" if success else "failed",
            metrics=success.metrics if success else None,
            error=end.error if isinstance(end, FailureReport) else None,
            output_url=success.output_url if success else None,
            receipt=dict(end.receipt) if end.receipt else None,
            config_label=config_label,
            batch_size=batch_size,
            failure=_failure_facts(job, end),
            **(success.upload if success else {}),
        )
        return FinalReport(job.job_id, progress_path(job), body)


class PushedClient(MainClient):
    """Reports jobs that were pushed to this worker, in the words of the predecessor's `/generate`.

    Such a worker neither registers nor claims nor sends heartbeats. Salad's queue checks its state.
    """

    def as_reported(self, report: ProgressReport) -> ProgressReport:
        """See `WorkerClient`."""
        return predecessor_report(report)


class BufferClient(_Client):
    """The protocol of buffer workers, which has no registration."""

    _paths = "buffer"
    _job_id_field = "buffer_job_id"

    async def register(self) -> None:
        """Do nothing. The first heartbeat of a buffer worker registers it."""

    async def heartbeat(
        self,
        status: Status,
        current_job_id: str | None,
        error: str | None,
        jobs: Sequence[ClaimedJob] = (),
    ) -> HeartbeatAnswer:
        """See `WorkerClient`. The heartbeat of a buffer worker has no field for one current job."""
        return await self._heartbeat(
            {
                "status": status,
                "gpu_class": self._profile.gpu_class,
                "capacity": self._profile.capacity,
                "error": error,
                "jobs": running_jobs(jobs),
            }
        )

    async def claim(self, wait_s: float = 0.0) -> Claim:
        """See `WorkerClient`."""
        return await self._claim({"worker_id": self._profile.worker_id}, wait_s)

    def as_reported(self, report: ProgressReport) -> ProgressReport:
        """See `WorkerClient`."""
        return predecessor_report(report)

    def final_report(
        self,
        job: ClaimedJob,
        end: SuccessReport | FailureReport,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`. The report of a buffer worker has neither label nor batch size."""
        success = end if isinstance(end, SuccessReport) else None
        body: dict[str, JsonValue] = {
            "status": "succeeded" if success else "failed",
            "error": end.error if isinstance(end, FailureReport) else None,
            "output_url": success.output_url if success else None,
            "metrics": dict(success.metrics) if success else None,
        }
        if end.receipt:
            body["receipt"] = dict(end.receipt)
        if success:
            body |= success.upload
        if job.attempt is not None:
            body["attempt"] = job.attempt
        facts = _failure_facts(job, end)
        if facts is not None:
            body["failure"] = facts
        return FinalReport(
            job.job_id, f"/internal/buffer/jobs/{segment(job.job_id)}/status", encode(body)
        )


def _failure_facts(
    job: ClaimedJob, end: SuccessReport | FailureReport
) -> dict[str, JsonValue] | None:
    """Return the facts of a failure, for an orchestrator that understands docs/protocol.md §9."""
    if job.attempt is None or not isinstance(end, FailureReport) or not end.facts:
        return None
    return dict(end.facts)


def predecessor_report(report: ProgressReport) -> ProgressReport:
    """Return a report as the predecessor's `/generate` sent it.

    It began with `downloading` at 0.05 and `inference` at 0.1. `inferring` followed as soon as
    frames were counted.
    """
    if report.phase in ("preparing", "downloading"):
        share = max(DOWNLOADING_SHARE, report.fraction)
        return replace(report, phase="downloading", fraction=share, metrics=None)
    fraction = max(INFERENCE_SHARE, report.fraction)
    if report.phase == "inferring" and not (report.metrics or {}).get("frames_done"):
        return replace(report, phase="inference", fraction=fraction, metrics=None)
    return replace(report, fraction=fraction)


__all__ = [
    "BufferClient",
    "Claim",
    "ClaimedJob",
    "FailureReport",
    "FinalReport",
    "HeartbeatAnswer",
    "MainClient",
    "OrchestratorHttp",
    "OutputAddresses",
    "ProgressReport",
    "PushedClient",
    "Status",
    "SuccessReport",
    "Timeouts",
    "WorkerClient",
    "WorkerProfile",
    "WorkerType",
    "checked_base_url",
]
