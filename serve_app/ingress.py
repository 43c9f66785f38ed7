"""The ingress: HTTP in front of the job service, and the slots that run jobs and poll.

Jobs run inside accepted requests: each slot is a loop that calls this deployment's own handle, so that
a draining replica gets no new work and is waited for while it does its last (Serve drains requests, not
background tasks).
"""

import asyncio
import hmac
import json
import logging
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from serve_app.answers import generate_body, invalid_request
from serve_app.driver import Graph, JobDriver, Pool
from serve_app.jobs import Job, JobConflict, JobRegistry, Origin, QueueFull, Ticket
from serve_app.readiness import Readiness
from serve_app.redact import shown_url
from serve_app.schemas import MAX_ID_CHARS, Failure, JobRequest, Params, Success
from serve_app.service import JobService
from serve_app.settings import (
    API_VERSION,
    SERVICE_NAME,
    AppArgs,
    make_folders,
    read_environment,
)
from serve_app.storage import LocalStore
from serve_app.webhooks import Event, WebhookSender

logger = logging.getLogger(__name__)

SLOT_WAIT_S = 5.0  # a slot's request ends after that without work, so that draining is quick
SLOT_LOOK_S = 0.1
EVENT_LOOK_S = 0.25
KEEP_ALIVE_S = 15.0  # a comment line, so that proxies keep a quiet stream open
RETRY_AFTER_S = 30
MAX_BODY_BYTES = 1 << 20

api = FastAPI(
    title="Lip-sync",
    version=API_VERSION,
    description="A video and an audio in, the same video with the mouth speaking that audio out.",
)


class JobCreate(BaseModel):
    """`POST /v1/avatar/jobs`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    video_url: str = Field(min_length=1, max_length=8192, repr=False)
    audio_url: str = Field(min_length=1, max_length=8192, repr=False)
    aspect_ratio: str | None = Field(None, max_length=32)
    resolution: str | None = Field(None, max_length=32)
    params: Params = Params()
    musetalk_job_id: str | None = Field(
        None, min_length=1, max_length=MAX_ID_CHARS, description="Yours, or one is made."
    )
    webhook_url: str | None = Field(None, max_length=8192, repr=False)
    metadata: dict[str, str | int | float | bool | None] | None = Field(None, max_length=64)


@api.exception_handler(RequestValidationError)
async def _on_invalid(request: Request, exc: RequestValidationError) -> JSONResponse:
    """Say in the contract's words which field is wrong."""
    first = exc.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"The request is not valid: {field or 'body'}: {first['msg']}."
    return _answer("", invalid_request(message, field=field))


@api.exception_handler(JobConflict)
async def _on_conflict(request: Request, exc: JobConflict) -> JSONResponse:
    """Refuse an id that stands for something else."""
    message = "This id, or idempotency key, belongs to a job with different content. Choose another."
    body = generate_body("", invalid_request(message))
    return JSONResponse(body | {"code": "job_conflict"}, status_code=409)


@api.exception_handler(QueueFull)
async def _on_full(request: Request, exc: QueueFull) -> JSONResponse:
    """Ask the caller to come back."""
    body = generate_body("", invalid_request("The queue is full. Try again later."))
    body |= {"code": "queue_full", "error_type": "processing_error", "retryable": True}
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse(body, status_code=429, headers=headers)


@api.middleware("http")
async def _bounded_body(request: Request, call_next: Any) -> Response:
    """Refuse bodies that no job needs before they are read."""
    length = request.headers.get("content-length", "0")
    if request.method == "POST" and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
        message = f"The body must have a Content-Length of at most {MAX_BODY_BYTES} bytes."
        return _answer("", invalid_request(message))
    response: Response = await call_next(request)
    return response


class Ingress:
    """One replica of the ingress. Bound with `@serve.ingress(api)` in app.py."""

    def __init__(
        self,
        args: AppArgs,
        preprocessor: Any,
        generators: dict[str, Any],
        finisher: Any,
        app_name: str,
    ) -> None:
        self._args = args
        self._env = read_environment()
        self._app_name = app_name
        folders = make_folders(args, self._env)
        self._store = LocalStore(folders.results, "")
        graph = Graph(preprocessor, _pools(args, generators), finisher)
        driver = JobDriver(graph, args.driver, args.inputs.download_timeout_s)
        registry = JobRegistry(folders.state / "jobs.sqlite3")
        self._service = JobService(registry, driver, args.queue, args.job_defaults())
        self._graph = graph
        self._readiness = Readiness(graph, app_name)
        self._slots = self._env.max_concurrent_jobs or args.queue.max_concurrent_jobs
        self._tasks = [asyncio.create_task(self._slot(slot)) for slot in range(self._slots)]

    # Slots -----------------------------------------------------------------------------------

    async def _slot(self, slot: int) -> None:
        """Call our own handle for ever; whichever replica is not draining does the work."""
        handle = serve.get_deployment_handle("Ingress", self._app_name)
        while True:
            try:
                await handle.work.remote(slot)
            except Exception:
                logger.exception("slot failed", extra={"slot": slot})
                await asyncio.sleep(1.0)

    async def work(self, slot: int) -> None:
        """Run one job if one comes within a few seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SLOT_WAIT_S
        while loop.time() < until:
            if await self._readiness.is_ready():
                job = await self._service.work()
                if job is not None:
                    return
            await asyncio.sleep(SLOT_LOOK_S)

    # Probes ----------------------------------------------------------------------------------

    @api.get("/hc", summary="Ready for a job?")
    async def hc(self) -> JSONResponse:
        """200 once every stage can take a job, 503 before."""
        ready = await self._readiness.is_ready()
        status = "ok" if ready else "starting"
        return JSONResponse({"status": status}, status_code=200 if ready else 503)

    @api.get("/health", summary="What is running")
    async def health(self) -> JSONResponse:
        """Like /hc, and what draws the mouth on what."""
        ready = await self._readiness.is_ready()
        body = {
            "status": "ok" if ready else "starting",
            "service": SERVICE_NAME,
            "version": API_VERSION,
            **self._readiness.facts(),
        }
        return JSONResponse(body, status_code=200 if ready else 503)

    @api.get("/v1/ping", summary="Who is there")
    async def ping(self, authorization: Annotated[str | None, Header()] = None) -> JSONResponse:
        """Version, build and load, for the fleet's own checks."""
        if not self._env.ping_is_public:
            self._check_bearer(authorization)
        facts = self._readiness.facts()
        body = {
            "status": "ok",
            "version": API_VERSION,
            "gpu": str(facts.get("device", "cpu")).startswith("cuda"),
            "activeJobs": self._service.active_jobs,
            "maxConcurrentJobs": self._slots,
            "buildCommit": self._env.build_commit,
            "buildTime": self._env.build_time,
            "imageDigest": self._env.image_digest,
        }
        return JSONResponse(body)

    @api.get("/v1/preflight", summary="Try every dependency")
    async def preflight(
        self, authorization: Annotated[str | None, Header()] = None
    ) -> JSONResponse:
        """Each runtime dependency and model file: `ok`, or the error that using it gave."""
        self._check_bearer(authorization)
        checks = await self._readiness.preflight()
        ok = all(result == "ok" for result in checks.values())
        body = {"status": "ok" if ok else "failed", "checks": checks}
        return JSONResponse(body, status_code=200 if ok else 503)

    # The synchronous job ---------------------------------------------------------------------

    @api.post("/generate", summary="Do a job and wait for it", responses={422: {}, 500: {}})
    async def generate(
        self,
        request: JobRequest,
        x_internal_api_key: Annotated[str | None, Header()] = None,
    ) -> JSONResponse:
        """Answer when the job has ended. The job ends early if every waiting client goes away."""
        self._check_key(x_internal_api_key)
        job = self._service.submit(request, Origin.SYNC)
        job = await self._service.wait(job.id)
        return _answer(job.id, job.outcome)

    # The asynchronous API --------------------------------------------------------------------

    @api.post("/v1/avatar/jobs", status_code=202, summary="Enter a job")
    async def create_job(
        self,
        create: JobCreate,
        x_internal_api_key: Annotated[str | None, Header()] = None,
        idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
    ) -> JSONResponse:
        """Answer at once; the same Idempotency-Key and content give the same job."""
        self._check_key(x_internal_api_key)
        if create.webhook_url is not None:
            await self._check_webhook(create.webhook_url)
        request = JobRequest(
            musetalk_job_id=create.musetalk_job_id or uuid.uuid4().hex,
            **create.model_dump(exclude={"musetalk_job_id", "webhook_url", "metadata"}),
        )
        ticket = Ticket(create.webhook_url, create.metadata, idempotency_key)
        job = self._service.submit(request, Origin.ASYNC, ticket)
        location = {"Location": f"/v1/avatar/jobs/{job.id}"}
        return JSONResponse(_job_body(job), status_code=202, headers=location)

    @api.get("/v1/avatar/jobs", summary="List jobs, newest first")
    async def list_jobs(
        self,
        x_internal_api_key: Annotated[str | None, Header()] = None,
        status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=400)] = None,
    ) -> JSONResponse:
        """One page; `next_cursor` asks for the next."""
        self._check_key(x_internal_api_key)
        jobs = self._service.registry.page(status, limit, _read_cursor(cursor))
        more = f"{jobs[-1].created!r}:{jobs[-1].id}" if len(jobs) == limit else None
        return JSONResponse({"jobs": [_job_body(job) for job in jobs], "next_cursor": more})

    @api.get("/v1/avatar/jobs/{job_id}", summary="The state of a job")
    async def get_job(
        self, job_id: str, x_internal_api_key: Annotated[str | None, Header()] = None
    ) -> JSONResponse:
        """Any job of this ingress, however it came in."""
        self._check_key(x_internal_api_key)
        return JSONResponse(_job_body(self._found(self._service.registry.get(job_id))))

    @api.delete("/v1/avatar/jobs/{job_id}", summary="Cancel a job")
    async def cancel_job(
        self, job_id: str, x_internal_api_key: Annotated[str | None, Header()] = None
    ) -> JSONResponse:
        """Ask for the end of a queued or running job; one that has ended stays as it is."""
        self._check_key(x_internal_api_key)
        self._found(self._service.registry.cancel(job_id))
        return JSONResponse({"detail": "Cancellation requested"})

    @api.get("/v1/avatar/jobs/{job_id}/events", summary="Follow a job (server-sent events)")
    async def job_events(
        self, job_id: str, x_internal_api_key: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """`progress` events while it waits and runs, then one `end` event."""
        self._check_key(x_internal_api_key)
        self._found(self._service.registry.get(job_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = self._events(job_id)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(self, job_id: str) -> AsyncIterator[str]:
        last, quiet_s = "", 0.0
        while (job := self._service.registry.get(job_id)) is not None:
            body = json.dumps(_job_body(job))
            if job.is_terminal:
                yield f"event: end\ndata: {body}\n\n"
                return
            if body != last:
                yield f"event: progress\ndata: {body}\n\n"
                last, quiet_s = body, 0.0
            elif quiet_s >= KEEP_ALIVE_S:
                yield ": still here\n\n"
                quiet_s = 0.0
            await asyncio.sleep(EVENT_LOOK_S)
            quiet_s += EVENT_LOOK_S

    # Files -----------------------------------------------------------------------------------

    @api.get("/files/{key:path}", summary="A finished video of the local store")
    async def files(self, key: str) -> Response:
        """Serve a stored video or its sidecar, with Range."""
        path = self._store.resolve(key)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(path)

    # Rules -----------------------------------------------------------------------------------

    def _check_key(self, given: str | None) -> None:
        if self._env.internal_api_key is not None:
            _check_secret(given, self._env.internal_api_key, "X-Internal-API-Key")

    def _check_bearer(self, header: str | None) -> None:
        scheme, _, token = (header or "").partition(" ")
        if self._env.worker_token is None:
            raise HTTPException(403, "Set WORKER_TOKEN to use this call.")
        given = token if scheme.lower() == "bearer" and token else None
        _check_secret(given, self._env.worker_token, "Authorization: Bearer")

    def _found(self, job: Job | None) -> Job:
        if job is None:
            raise HTTPException(404, "There is no such job.")
        return job


def _check_secret(given: str | None, expected: str, name: str) -> None:
    if given is None:
        raise HTTPException(401, f"Send {name}.")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, f"{name} is not right.")


def _pools(args: AppArgs, generators: dict[str, Any]) -> tuple[Pool, ...]:
    return tuple(
        Pool(
            name=pool.name,
            handle=generators[pool.name],
            capacity=2 * (pool.max_replicas or pool.replicas),
            usd_per_frame=pool.usd_per_hour / 3600 / pool.frames_per_s,
        )
        for pool in args.pools
    )


def _answer(job_id: str, outcome: Success | Failure | None) -> JSONResponse:
    assert outcome is not None
    status = outcome.status_code if isinstance(outcome, Failure) else 200
    return JSONResponse(generate_body(job_id, outcome), status_code=status)


def _read_cursor(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        raise HTTPException(422, "cursor: use the next_cursor of an earlier answer.") from None


def _job_body(job: Job) -> dict[str, Any]:
    """Return contracts.md §3's shape, and the progress."""
    outcome = job.outcome
    failure = None
    if isinstance(outcome, Failure):
        names = ("error_type", "code", "stage", "details", "retryable")
        failure = {name: getattr(outcome, name) for name in names}
    request = job.request
    return {
        "id": job.id,
        "status": job.status,
        "output_url": outcome.output_url if isinstance(outcome, Success) else None,
        "metrics": outcome.metrics if isinstance(outcome, Success) else None,
        "error": outcome.error_message if isinstance(outcome, Failure) else None,
        "failure": failure,
        "input": {
            # Signed query strings stay on this worker.
            "video_url": shown_url(request.video_url),
            "audio_url": shown_url(request.audio_url),
            "aspect_ratio": request.aspect_ratio,
            "resolution": request.resolution,
            "params": request.params.model_dump(exclude_none=True),
        },
        "progress": {
            "phase": str(job.progress.phase),
            "fraction": round(job.progress.fraction, 4),
            "frames_done": job.progress.frames_done,
            "frames_total": job.progress.frames_total,
            "stage_seconds": job.progress.stage_seconds,
        },
        "attempt": job.attempt,
        "metadata": job.metadata,
        "created_at": _utc(job.created),
        "updated_at": _utc(job.updated),
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
