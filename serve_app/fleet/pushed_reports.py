"""Reports jobs that were pushed to this worker (queue mode) to an orchestrator.

Salad's queue, or another poller, posts a job to `/generate` and waits. The orchestrator that put
the job into the queue receives its progress and its end, as from a worker that claimed it. This
worker claims nothing and sends no heartbeats, because a worker that does would be given jobs.
"""

import asyncio
import contextlib
import ipaddress
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.client import (
    ClaimedJob,
    OrchestratorHttp,
    PushedClient,
    WorkerProfile,
)
from orchestrator.store.errors import StoreUnavailable
from serve_app.config.environment import Environment
from serve_app.contract.outcomes import Failure, Outcome
from serve_app.fleet.identity import kept_id, worker_id
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import CAPACITY, Outbox
from serve_app.fleet.polling import check_connection
from serve_app.fleet.reported_run import ReportedRun, report_of
from serve_app.jobs.job import Job, Origin, ProgressCallback
from serve_app.jobs.service import JobService
from serve_app.telemetry.background import run_again

logger = logging.getLogger(__name__)

READ_PAUSES_S = (0.1, 1.0, 5.0, 10.0)  # the registry may be locked by another process
SETTLE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ReportRules:
    """The orchestrator that pushed jobs are reported to."""

    base_url: str
    api_key: str


def report_rules(env: Environment) -> ReportRules | None:
    """Return where to report pushed jobs; None if jobs are claimed or no orchestrator is set.

    Raises:
        EnvironmentInvalid: the orchestrator's address or the key is invalid.
    """
    if env.mode != "queue" or env.orchestrator_url is None or env.internal_api_key is None:
        return None
    api_key = env.internal_api_key.get_secret_value()
    check_connection(env.orchestrator_url, api_key)
    return ReportRules(env.orchestrator_url, api_key)


def local_links_warning(env: Environment, public_base_url: str | None) -> str | None:
    """Return a warning if the links in reports lead to an address of this machine alone."""
    if env.b2_bucket is not None or public_base_url is not None or not _is_local(env.host):
        return None
    return (
        f"reports contain links to {env.host}, which only this machine can open: set "
        "`public_base_url` in the configuration, or B2_KEY_ID, B2_APP_KEY and B2_BUCKET_NAME"
    )


def _is_local(host: str) -> bool:
    """Return whether a link to the host that a server listens on is of no use elsewhere."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


class PushedReports:
    """Reports the jobs that the service runs for `POST /generate`.

    Args:
        state: the folder of final reports.
        batch_size: returns the batch size for the reports, None if it is unknown.
        public_base_url: what links begin with, None if it is not configured.
        outbox_capacity: reports that wait; with more, a success is not reported again.
    """

    def __init__(
        self,
        rules: ReportRules,
        env: Environment,
        state: Path,
        *,
        service: JobService,
        batch_size: Callable[[], int | None],
        public_base_url: str | None = None,
        options: WorkerOptions | None = None,
        outbox_capacity: int = CAPACITY,
    ) -> None:
        if warning := local_links_warning(env, public_base_url):
            logger.warning(warning)
        self._service, self._batch_size = service, batch_size
        # A caller waits for the job, and would take the 409 of a stopped one as its end. So answers
        # of 404 never stop a job.
        options = options or WorkerOptions(config_label=env.config_label)
        self._options = replace(options, unknown_s=math.inf)
        machine = worker_id(env, fallback=kept_id(state))
        profile = WorkerProfile(machine, gpu_class="")
        self._outbox = Outbox(state / "outbox", capacity=outbox_capacity)
        self._client = PushedClient(OrchestratorHttp(rules.base_url, rules.api_key), profile)

    async def deliver_forever(self) -> None:
        """Send final reports until cancelled."""
        send = self._client.send_report
        try:
            await run_again("final reports", lambda: self._outbox.deliver_forever(send))
        finally:
            await self._client.aclose()

    async def run_reported(
        self, job: Job, run: Callable[[ProgressCallback], Awaitable[Outcome]]
    ) -> None:
        """Run an attempt at a job and report its progress, and its end if it ends the job.

        The end of a lost or cancelled attempt is not reported, because the job continues elsewhere
        or its caller has cancelled it.
        """
        claimed = ClaimedJob(job.id, {"musetalk_job_id": job.id})
        reported = ReportedRun(
            self._client,
            claimed,
            self._options,
            run=run,
            cancel=lambda: self._cancel(job.id),
            batch_size=self._batch_size(),
        )
        if await reported.to_end() is None:
            return
        ended = await self._read(job.id)
        if ended is None or ended.outcome is None or ended.number != job.number:
            return
        if isinstance(ended.outcome, Failure) and ended.outcome.cancelled:
            return
        await self._report(ended)

    async def report_again(self, job: Job) -> None:
        """Report the end of a job that was pushed again after it had ended here.

        Nothing is reported while the outbox is full, so that a caller that repeats its request
        cannot fill the disk while the orchestrator does not answer.
        """
        if job.origin is not Origin.SYNC or job.outcome is None:
            return
        if not await asyncio.to_thread(lambda: self._outbox.is_full):
            await self._report(job)

    async def settle(self, seconds: float) -> None:
        """Wait until every final report is accepted or refused, at most for that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await asyncio.to_thread(self._outbox.pending):
                    await asyncio.sleep(SETTLE_POLL_S)

    async def _report(self, job: Job) -> None:
        assert job.outcome is not None
        report = self._client.final_report(
            ClaimedJob(job.id, {"musetalk_job_id": job.id}),
            report_of(self._service.publish(job.outcome), job.progress.fraction),
            config_label=self._options.config_label,
            batch_size=self._batch_size(),
        )
        await self._outbox.put(report)

    async def _cancel(self, job_id: str) -> None:
        await self._service.cancel(job_id)

    async def _read(self, job_id: str) -> Job | None:
        for pause_s in READ_PAUSES_S:
            try:
                return await self._service.get(job_id)
            except StoreUnavailable:
                await asyncio.sleep(pause_s)
        return await self._service.get(job_id)
