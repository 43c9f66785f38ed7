"""The protocol of workers (docs/protocol.md §2 and §9).

Answers to the predecessor's workers have exactly the fields that those expect. What §9 adds is in
a claimed job, where unknown fields are ignored, and in the answer to a heartbeat that lists jobs.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from orchestrator.outputs.errors import OutputMissing
from orchestrator.service.services import Services, ServicesDep, WorkerDep
from orchestrator.service.texts import Id
from orchestrator.service.worker_messages import (
    BufferClaim,
    BufferHeartbeat,
    BufferReport,
    Claim,
    Goodbye,
    Heartbeat,
    Register,
    Report,
)
from orchestrator.store.errors import WorkerDrained
from orchestrator.store.leases import FailureKind
from orchestrator.store.values import (
    AttemptName,
    Beat,
    Failure,
    Lease,
    Progress,
    WorkerFacts,
)

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/internal", tags=["workers"])

WorkerId = Annotated[Id, Path()]
OK = {"detail": "ok"}
DRAINED = "This worker was asked to claim nothing more."
PHANTOM = "The worker reported success without an output_url or without metrics."


@router.post("/main/workers/{worker_id:path}/register")
async def register(
    worker_id: WorkerId, said: Register, services: ServicesDep, caller: WorkerDep
) -> dict[str, str]:
    """Take up a worker. Its heartbeats and claims do the same."""
    caller.require(worker_id)
    facts = WorkerFacts(worker_id, said.worker_type, said.provider, said.gpu_class, said.capacity)
    await services.run(services.store.register, facts)
    return OK


@router.post("/main/workers/{worker_id:path}/heartbeat")
async def heartbeat(
    worker_id: WorkerId, said: Heartbeat, services: ServicesDep, caller: WorkerDep
) -> dict[str, Any]:
    """Renew the leases of a main worker's jobs."""
    caller.require(worker_id)
    return await _beat(services, said.beat(worker_id))


@router.post("/buffer/workers/{worker_id:path}/heartbeat")
async def buffer_heartbeat(
    worker_id: WorkerId, said: BufferHeartbeat, services: ServicesDep, caller: WorkerDep
) -> dict[str, Any]:
    """Renew the leases of a buffer worker's jobs."""
    caller.require(worker_id)
    return await _beat(services, said.beat(worker_id))


@router.post("/main/workers/{worker_id:path}/goodbye")
async def goodbye(
    worker_id: WorkerId, said: Goodbye, services: ServicesDep, caller: WorkerDep
) -> dict[str, str]:
    """Return the jobs of a worker that ends."""
    caller.require(worker_id)
    count = await services.run(services.store.goodbye, worker_id, said.reason)
    services.bell.ring(count)
    logger.info("worker left", extra={"worker_id": worker_id, "jobs": count})
    return OK


@router.post("/main/jobs/claim")
async def claim(
    request: Request, said: Claim, services: ServicesDep, caller: WorkerDep
) -> dict[str, Any]:
    """Lease a job to a main worker, at once or within `wait_s`."""
    caller.require(said.worker_id)
    return await _claim(request, services, said)


@router.post("/buffer/jobs/claim")
async def buffer_claim(
    request: Request, said: BufferClaim, services: ServicesDep, caller: WorkerDep
) -> dict[str, Any]:
    """Lease a job to a buffer worker, at once or within `wait_s`."""
    caller.require(said.worker_id)
    return await _claim(request, services, said)


@router.post("/jobs/{job_id:path}/progress")
async def progress(
    job_id: Annotated[Id, Path()], said: Report, services: ServicesDep, caller: WorkerDep
) -> dict[str, str]:
    """Take the progress or the final report of a job; 409 if it is no longer this attempt's."""
    caller.require(said.worker_id)
    name = AttemptName(job_id, said.worker_id, said.attempt)
    if said.status == "running":
        report = Progress(said.progress, said.phase, _counts(said.metrics))
        await services.run(services.store.progress, name, report)
        answer = OK
        services.metrics.reports.labels("progress").inc()
    else:
        answer = await _end(services, name, said)
    services.news.tell(job_id)
    return answer


@router.post("/buffer/jobs/{buffer_job_id:path}/status")
async def buffer_status(
    buffer_job_id: Annotated[Id, Path()],
    said: BufferReport,
    services: ServicesDep,
    caller: WorkerDep,
) -> dict[str, str]:
    """Take the final report of a buffer job."""
    name = AttemptName(None, caller.only_id, said.attempt, buffer_job_id)
    answer = await _end(services, name, said)
    services.news.tell_all()  # the report does not name the job
    return answer


async def _beat(services: Services, heard: Beat) -> dict[str, Any]:
    answer = await services.run(services.store.beat, heard)
    if heard.jobs is None:
        return {**OK}
    additions = {"cancel": list(answer.cancel), "drain": answer.is_drained}
    if services.uploads is not None:
        additions["outputs"] = True
    return {**OK, **additions}


async def _claim(request: Request, services: Services, said: BufferClaim) -> dict[str, Any]:
    try:
        lease = await _claim_held(request, services, said)
    except WorkerDrained:
        services.metrics.claims.labels("drained").inc()
        return {"job": None, "error": DRAINED}
    services.metrics.claims.labels("none" if lease is None else "job").inc()
    if lease is None:
        return {"job": None}
    facts = {"job_id": lease.job.id, "attempt": lease.attempt, "worker_id": said.worker_id}
    logger.info("job claimed", extra=facts)
    services.news.tell(lease.job.id)
    job = _handed_out(lease)
    if services.uploads is not None:
        job["output"] = services.uploads.addresses(lease)
    return {"job": job}


async def _claim_held(request: Request, services: Services, said: BufferClaim) -> Lease | None:
    """Claim; if there is nothing, wait for a ring and claim again, until `wait_s` is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + said.wait_s
    bell, rung = services.bell, None
    while True:
        heard = bell.number
        try:
            with services.metrics.claim_seconds.time():
                lease = await services.run(services.store.claim, said.facts())
        except WorkerDrained:
            if rung is not None:
                bell.pass_on(rung)
            raise
        if lease is not None:
            return lease
        if rung is not None:
            bell.pass_on(rung)  # the new job is not for this worker
        if services.is_stopping.is_set() or until <= loop.time():
            return None
        rung = await bell.wait(heard, until - loop.time())
        if await request.is_disconnected():
            if rung is not None:
                bell.pass_on(rung)
            return None


def _handed_out(lease: Lease) -> dict[str, Any]:
    """Return a claimed job. What the client left out is left out, as workers have defaults."""
    job = lease.job
    deadline = None if job.deadline is None else datetime.fromtimestamp(job.deadline, UTC)
    optional = {
        "aspect_ratio": job.aspect_ratio,
        "resolution": job.resolution,
        "params": job.params,
        "deadline": None if deadline is None else deadline.isoformat(),
    }
    named = {} if lease.buffer_job_id is None else {"buffer_job_id": lease.buffer_job_id}
    avatar_id = job.avatar_id
    return {
        **named,
        "musetalk_job_id": job.id,
        **({"video_url": job.video_url} if avatar_id is None else {"avatar_id": avatar_id}),
        "audio_url": job.audio_url,
        **{name: value for name, value in optional.items() if value is not None},
        "attempt": lease.attempt,
        "lease_s": lease.lease_s,
    }


async def _end(
    services: Services, name: AttemptName, said: Report | BufferReport
) -> dict[str, str]:
    """Store how an attempt ended. A success without its result is a failure of that machine."""
    answer, kind = OK, None
    result = said.completion()
    try:
        if result is None:
            failure, kind = said.failed()
            if said.status == "succeeded":
                failure, kind = Failure(PHANTOM), FailureKind.PROCESSING
            is_news = await services.run(services.store.fail, name, failure, kind)
        elif services.uploads is not None and said.size_bytes is not None:
            is_news, url = await services.uploads.accept(name, result, said.size_bytes)
            answer = {**OK, "output_url": url}
        else:
            is_news = await services.run(services.store.finish, name, result)
    except OutputMissing as error:
        kind = FailureKind.PROCESSING
        is_news = await services.run(services.store.fail, name, Failure(str(error)), kind)
    if kind is not None:
        services.bell.ring()  # the job may have returned to the queue
    services.metrics.reports.labels("succeeded" if kind is None else "failed").inc()
    facts = {
        "job_id": name.job_id or name.buffer_job_id,
        "attempt": name.number,
        "worker_id": name.worker_id,
        "is_first": is_news,
        "failure": kind,
    }
    logger.info("job reported", extra=facts)
    services.wake_deliveries()
    return answer


def _counts(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the frames of a progress report; they are all that is kept of its metrics."""
    found = {name: (metrics or {}).get(name) for name in ("frames_done", "frames_total")}
    numbers = {name: value for name, value in found.items() if isinstance(value, int)}
    return numbers or None
