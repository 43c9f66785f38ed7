"""The ingress: HTTP in front of the job service, and the slots that run jobs and poll.

Jobs run inside accepted requests to this deployment's own handle; slots.py says why.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Body, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from ray import serve

from musetalk_pipeline.errors import PipelineError
from serve_app.api.answers import job_body
from serve_app.api.event_stream import job_events
from serve_app.api.fields import check_size, odd_size
from serve_app.api.notifications import notify_forever
from serve_app.api.routes import (
    BadField,
    RequestRefused,
    build_api,
    failure_answer,
    generate_answer,
)
from serve_app.config.environment import Environment, read_environment
from serve_app.config.folders import Folders, make_folders
from serve_app.config.settings import API_VERSION, SERVICE_NAME, AppArgs, jobs_at_a_time
from serve_app.contract.lenient import read_leniently
from serve_app.contract.outcomes import Failure, busy, job_ended, refused
from serve_app.contract.requests import JobCreate, JobRequest, PreviewRequest
from serve_app.fleet.polling import Polling, polling_rules
from serve_app.fleet.pushed import PushedReports, report_rules
from serve_app.gate.callers import CallerRules
from serve_app.gate.doorkeeper import Doorkeeper
from serve_app.gate.links import LinkMaker
from serve_app.graph.builders import build_store
from serve_app.graph.driver import JobDriver
from serve_app.graph.pools import Graph, Pool
from serve_app.graph.readiness import Readiness
from serve_app.graph.replica_setup import set_up_replica
from serve_app.jobs.job import Job, Origin, QueueFull, Ticket
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.service import JobService
from serve_app.jobs.slots import Slots
from serve_app.net.addresses import AddressPolicy
from serve_app.outputs.local import LocalStore
from serve_app.telemetry.background import run_again
from serve_app.telemetry.logs import LAST_WORDS
from serve_app.webhooks.sender import WebhookSender

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  # a caller whose job has ended is answered well within this
REPORT_S = 5.0  # and an orchestrator that is there has accepted a report
STOPPING_RETRY_S = 30


class Ingress:
    """One replica of the ingress. Its public methods are the routes of api.py."""

    _waiting = 0  # callers of POST /generate
    _is_stopping = False
    _pushed: PushedReports | None = None

    def __init__(
        self,
        args: AppArgs,
        preprocessor: Any,
        generators: dict[str, Any],
        finisher: Any,
        app_name: str,
    ) -> None:
        self._env = read_environment()
        set_up_replica(self._env)
        folders = make_folders(args, self._env)
        self._store = LocalStore(folders.results)
        self._let_in(args, folders.state)
        graph = Graph(preprocessor, _pools(args, generators), finisher)
        registry = JobRegistry(folders.state / "jobs.sqlite3")
        self._readiness = Readiness(graph, app_name, lambda: self._service.threads.is_writable())
        self._n_slots = jobs_at_a_time(args, self._env)
        driver = JobDriver(
            graph,
            args.driver,
            args.inputs.download_timeout_s,
            self._readiness.description,
            self._n_slots,
        )
        self._outputs = build_store(args, self._env)
        # Threads of their own: a store that does not answer holds up nothing else.
        self._looks = ThreadPoolExecutor(4, "outputs")
        self._service = JobService(
            registry,
            driver,
            args.queue,
            args.job_defaults(),
            self._has_output,
        )
        self._service.publish = self._links.unasked().publish
        self._previews = asyncio.Semaphore(self._n_slots)
        self._webhooks = _webhooks(args, self._env, folders)
        self._polling = self._make_polling(folders)
        self._pushed = self._make_pushed_reports(folders)
        handle = serve.get_deployment_handle("Ingress", app_name)
        self._slots = Slots(lambda slot: handle.work.remote(slot), self._do_next)
        # The slots beyond `_n_slots` fetch ahead; driver.py lets `_n_slots` jobs be worked on.
        loops = range(self._n_slots + args.queue.downloads_ahead)
        self._tasks = [asyncio.create_task(self._slots.keep(slot)) for slot in loops]
        if self._webhooks is not None:
            webhooks = self._webhooks
            self._keep("webhooks", webhooks.deliver_forever)
            threads, links = self._service.threads, self._links.unasked()
            self._keep("notifications", lambda: notify_forever(registry, threads, webhooks, links))
        if self._polling is not None:
            self._keep("polling", self._polling.start)
        if self._pushed is not None:
            self._keep("reports", self._pushed.deliver_forever)

    def _let_in(self, args: AppArgs, state: Path) -> None:
        """Decide who may call and what links look like, and say the first in the log."""
        self._args = args
        rules = CallerRules.of(self._env)
        self._links = LinkMaker.of(args, self._env, state)
        self.doorkeeper = Doorkeeper(rules, self._links.signer)
        logger.info(rules.in_words())

    def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(run_again(name, work)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_api(self)

    # Slots -----------------------------------------------------------------------------------

    async def work(self, slot: int) -> None:
        """Run one job if one comes within a few seconds; called by the slots themselves."""
        await self._slots.work(slot)

    async def drain(self) -> None:
        """Begin no job any more; return when those that run have ended and were answered.

        What waits in the queue stays there for the next start; who waits for it is cut off.
        """
        self._is_stopping = True
        await self._slots.stop()
        until = time.monotonic() + ANSWER_S
        while self._waiting and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if self._pushed is not None:
            await self._pushed.settle(REPORT_S)  # the disk may go with the container
        logger.info(LAST_WORDS)

    async def _do_next(self, slot: int) -> bool:
        """Run a job that waits here, or one that the orchestrator hands out; False for none."""
        tell = None if self._pushed is None else self._pushed.tell
        if await self._may_begin() and await self._service.work(tell) is not None:
            return True
        # A job that would wait here is better claimed by another worker.
        has_place = slot < self._n_slots and self._service.active_jobs < self._n_slots
        if self._is_stopping or not has_place or self._polling is None:
            return False
        return await self._polling.work_once()

    async def _may_begin(self) -> bool:
        """Return whether a job can begin here now. The end of this worker may have been asked for
        while that was looked up, or while a claim was tried again.
        """
        return await self._readiness.is_ready() and not self._is_stopping

    async def _has_output(self, job: Job) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._looks, self._outputs.has, job.id)

    def _make_polling(self, folders: Folders) -> Polling | None:
        rules = polling_rules(self._env)
        if rules is None:
            return None
        return Polling(
            rules,
            self._env,
            folders.state,
            self._service,
            self._may_begin,
            self._n_slots,
            self._batch_size,
        )

    def _make_pushed_reports(self, folders: Folders) -> PushedReports | None:
        rules = report_rules(self._env)
        if rules is None:
            if self._env.mode == "queue" and self._env.orchestrator_url is not None:
                logger.warning("without INTERNAL_API_KEY jobs are neither claimed nor reported")
            return None
        # Said, because this environment may have been a poller's: WORKER_TYPE alone is missing.
        logger.info("nothing is claimed: jobs come to POST /generate, and are reported")
        return PushedReports(rules, self._env, folders.state, self._service, self._batch_size)

    def _batch_size(self) -> int | None:
        """Return the frames that go through a network together; known from readiness on."""
        chosen: int | None = self._env.batch_size or self._readiness.facts().get("batch_size")
        return chosen

    # Probes ----------------------------------------------------------------------------------

    async def hc(self) -> JSONResponse:
        """200 once every stage can take a job, 503 before."""
        ready, status = await self._status()
        return JSONResponse({"status": status}, status_code=200 if ready else 503)

    async def health(self) -> JSONResponse:
        """Like /hc, and what draws the mouth on what."""
        ready, status = await self._status()
        body = {
            "status": status,
            "service": SERVICE_NAME,
            "version": API_VERSION,
            **self._readiness.facts(),
        }
        return JSONResponse(body, status_code=200 if ready else 503)

    async def _status(self) -> tuple[bool, str]:
        if self._is_stopping:
            return False, "stopping"
        ready = await self._readiness.is_ready()
        return ready, "ok" if ready else "starting"

    async def ping(self) -> JSONResponse:
        """Version, build and load, for the fleet's own checks."""
        facts = self._readiness.facts()
        body = {
            "status": "ok",
            "version": API_VERSION,
            "gpu": str(facts.get("device", "cpu")).startswith("cuda"),
            # Jobs that are only fetched, ahead of their place, are not counted.
            "activeJobs": min(self._service.active_jobs, self._n_slots),
            "maxConcurrentJobs": self._n_slots,
            "buildCommit": self._env.build_commit,
            "buildTime": self._env.build_time,
            "imageDigest": self._env.image_digest,
        }
        return JSONResponse(body)

    async def preflight(self) -> JSONResponse:
        """Each runtime dependency and model file: `ok`, or the error that using it gave."""
        checks = await self._readiness.preflight()
        # "ok, but …" works, with something that whoever runs the worker should know.
        ok = all(result == "ok" or result.startswith("ok, but ") for result in checks.values())
        body = {"status": "ok" if ok else "failed", "checks": checks}
        return JSONResponse(body, status_code=200 if ok else 503)

    # The synchronous job ---------------------------------------------------------------------

    async def generate(
        self,
        http: Request,
        payload: Annotated[dict[str, Any], Body()],
        salad_job_id: Annotated[str | None, Header(max_length=256)] = None,
    ) -> JSONResponse:
        """Answer when the job has ended. The job ends early if every waiting client goes away.
        What is not understood becomes the default, and a sentence in `warnings`.
        """
        self._refuse_while_stopping()
        request, warnings = self._read(payload)
        ticket = Ticket(warnings=warnings, queue_job_id=salad_job_id)
        job = await self._service.submit(request, Origin.SYNC, ticket)
        if job.is_terminal and self._pushed is not None:
            await self._pushed.tell_again(job)
        self._waiting += 1
        try:
            job = await self._service.wait(job.id)
        finally:
            self._waiting -= 1
        links = self._links.answering(http.scope)
        return generate_answer(job, links, stack_traces=self._args.stack_traces)

    def _read(self, payload: dict[str, Any]) -> tuple[JobRequest, tuple[str, ...]]:
        ignore_size = self._env.legacy_size_source
        try:
            request, warnings = read_leniently(payload, legacy_size_source=ignore_size)
        except ValidationError as exc:
            raise RequestValidationError(exc.errors(include_url=False)) from exc
        return request, warnings + odd_size(request.resolution)

    async def preview(self, request: PreviewRequest) -> Response:
        """One composited frame (PNG) with its face box drawn in; `X-Face-Box` is x0,y0,x1,y1."""
        check_size(request.aspect_ratio, request.resolution)
        if self._previews.locked():
            raise QueueFull
        async with self._previews:
            made = await self._service.preview(request)
        box = made.box
        headers = {
            "X-Face-Box": f"{box.x0},{box.y0},{box.x1},{box.y1}",
            "X-Source-Frame": str(made.source_frame),
        }
        return Response(made.png, media_type="image/png", headers=headers)

    # The asynchronous API --------------------------------------------------------------------

    async def create_job(
        self,
        http: Request,
        create: JobCreate,
        idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
    ) -> JSONResponse:
        """Answer at once; the same Idempotency-Key and content give the same job."""
        self._refuse_while_stopping()
        warnings = check_size(create.aspect_ratio, create.resolution)
        if create.webhook_url is not None:
            await self._check_webhook(create.webhook_url)
        request = JobRequest(
            musetalk_job_id=create.musetalk_job_id or uuid.uuid4().hex,
            **create.model_dump(exclude={"musetalk_job_id", "webhook_url", "metadata"}),
        )
        ticket = Ticket(create.webhook_url, create.metadata, idempotency_key, warnings)
        job = await self._service.submit(request, Origin.ASYNC, ticket)
        location = {"Location": f"/v1/avatar/jobs/{quote(job.id, safe='')}"}
        body = job_body(job, self._links.answering(http.scope))
        return JSONResponse(body, status_code=202, headers=location)

    async def list_jobs(
        self,
        http: Request,
        status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=400)] = None,
    ) -> JSONResponse:
        """One page; `next_cursor` asks for the next."""
        links = self._links.answering(http.scope)
        page = await self._service.page(status, limit, _read_cursor(cursor))
        last = page.jobs[-1] if page.has_more else None
        more = None if last is None else f"{last.created!r}:{last.id}"
        bodies = [job_body(job, links) for job in page.jobs]
        return JSONResponse({"jobs": bodies, "next_cursor": more})

    async def get_job(self, http: Request, job_id: str) -> JSONResponse:
        """Any job of this ingress, however it came in."""
        job = self._found(await self._service.get(job_id))
        return JSONResponse(job_body(job, self._links.answering(http.scope)))

    async def cancel_job(self, job_id: str) -> JSONResponse:
        """Ask for the end of a queued or running job; 409 for one that has ended. One whose upload
        has begun goes on.
        """
        found = await self._service.cancel(job_id)
        if found is None:
            raise RequestRefused(_no_job())
        job, was_live = found
        if not was_live:
            return failure_answer(job_ended(job.status), job.id)
        return JSONResponse({"detail": "Cancellation requested"})

    async def job_events(
        self,
        http: Request,
        job_id: str,
        last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    ) -> StreamingResponse:
        """`progress` events while it waits and runs, every change of phase among them, then one
        `end` event.
        """
        self._found(await self._service.get(job_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        links = self._links.answering(http.scope)
        events = job_events(self._service, job_id, last_event_id, links)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    # Files -----------------------------------------------------------------------------------

    async def files(self, key: str) -> Response:
        """Serve a stored video or its sidecar, with Range."""
        path = await asyncio.to_thread(self._store.resolve, key)
        if path is None:
            raise RequestRefused(refused(404, "file_not_found", "There is no such file."))
        return FileResponse(path)

    # Rules -----------------------------------------------------------------------------------

    def _refuse_while_stopping(self) -> None:
        if self._is_stopping:
            text = "This worker is stopping and takes no new job."
            raise RequestRefused(
                busy(503, "stopping", text), {"Retry-After": str(STOPPING_RETRY_S)}
            )

    async def _check_webhook(self, url: str) -> None:
        if self._webhooks is None:
            raise BadField(
                "webhook_url",
                "this worker has no WEBHOOK_SECRET to sign with",
                "Leave webhook_url out, or set WEBHOOK_SECRET where the worker runs.",
            )
        try:
            await self._webhooks.check_target(url)
        except PipelineError as exc:
            raise BadField("webhook_url", exc.message, exc.hint) from exc

    def _found(self, job: Job | None) -> Job:
        if job is None:
            raise RequestRefused(_no_job())
        return job


def _no_job() -> Failure:
    return refused(404, "job_not_found", "There is no such job.")


def _webhooks(args: AppArgs, env: Environment, folders: Folders) -> WebhookSender | None:
    if env.webhook_secret is None:
        return None
    policy = AddressPolicy(frozenset([*args.inputs.allowed_hosts, *env.allowed_hosts]))
    return WebhookSender(folders.state / "webhooks.sqlite3", env.webhook_secret, policy=policy)


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


def _read_cursor(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        raise BadField("cursor", "use the next_cursor of an earlier answer") from None
