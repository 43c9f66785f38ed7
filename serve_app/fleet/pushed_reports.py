"""Tells an orchestrator of jobs that were pushed to this worker (queue mode).

Salad's queue, or somebody's own poller, posts to `/generate` and waits; the orchestrator that put
the job there sees its progress and its end, as from a worker that claimed it. Nothing is claimed,
and there are no heartbeats: whether the worker is there is the pusher's business, and one that no
orchestrator hands jobs to must not look like one that wants some.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.client import (
    ClaimedJob,
    OrchestratorHttp,
    PushedClient,
    WorkerProfile,
)
from serve_app.config.environment import Environment
from serve_app.contract.outcomes import Failure, Outcome
from serve_app.fleet.identity import kept_id, worker_id
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.polling import check_connection
from serve_app.fleet.reported_run import Note, ReportedRun, end_of
from serve_app.jobs.job import Job, Origin
from serve_app.jobs.service import JobService
from serve_app.jobs.state_file import StateUnavailable
from serve_app.telemetry.background import run_again

LOOK_PAUSES_S = (0.1, 1.0, 5.0, 10.0)  # the registry has just stored the end; it may be locked
SETTLE_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class ReportRules:
    """The orchestrator that pushed jobs are reported to."""

    base_url: str
    api_key: str


def report_rules(env: Environment) -> ReportRules | None:
    """Return whom to report pushed jobs to; None if jobs are claimed, or nobody is named.

    Raises:
        EnvironmentInvalid: the orchestrator's address or the key cannot be used.
    """
    if env.mode != "queue" or env.orchestrator_url is None or env.internal_api_key is None:
        return None
    check_connection(env.orchestrator_url, env.internal_api_key)
    return ReportRules(env.orchestrator_url, env.internal_api_key)


class PushedReports:
    """Reports the jobs that the service runs for `POST /generate`.

    Args:
        state: holds the outbox.
        batch_size: what is known of it, for the reports.
    """

    def __init__(
        self,
        rules: ReportRules,
        env: Environment,
        state: Path,
        service: JobService,
        batch_size: Callable[[], int | None],
        options: WorkerOptions | None = None,
    ) -> None:
        self._service, self._batch_size = service, batch_size
        # A caller waits for the job, and would take the 409 of a stopped one for its end: that an
        # orchestrator does not know it, for however long, is no reason to stop.
        options = options or WorkerOptions(config_label=env.config_label)
        self._options = replace(options, unknown_s=math.inf)
        machine = worker_id(os.environ, fallback=kept_id(state))
        profile = WorkerProfile(machine, gpu_class="")
        self._outbox = Outbox(state / "outbox")
        self._client = PushedClient(OrchestratorHttp(rules.base_url, rules.api_key), profile)

    async def deliver_forever(self) -> None:
        """Send final reports until cancelled; then nothing is sent any more."""
        send = self._client.send_report
        try:
            await run_again("final reports", lambda: self._outbox.deliver_forever(send))
        finally:
            await self._client.aclose()

    async def tell(self, job: Job, run: Callable[[Note], Awaitable[Outcome]]) -> None:
        """Run an attempt at a job, report its progress, and its end if that is the job's end.

        An attempt that was lost or cancelled says nothing: the job goes on elsewhere, or whoever
        ended it knows.
        """
        named = ClaimedJob(job.id, {"musetalk_job_id": job.id})
        reported = ReportedRun(
            self._client,
            named,
            self._options,
            run=run,
            cancel=lambda: self._cancel(job.id),
            batch_size=self._batch_size(),
        )
        if await reported.end() is None:
            return
        ended = await self._look(job.id)
        if ended is None or ended.outcome is None or ended.attempt_id != job.attempt_id:
            return
        if isinstance(ended.outcome, Failure) and ended.outcome.cancelled:
            return
        await self._report(ended)

    async def tell_again(self, job: Job) -> None:
        """Report the end of a job that was pushed once more after it had ended here.

        Whoever asks again and again must not fill the disk while the orchestrator is away.
        """
        if job.origin is not Origin.SYNC or job.outcome is None:
            return
        if not await asyncio.to_thread(lambda: self._outbox.is_full):
            await self._report(job)

    async def settle(self, seconds: float) -> None:
        """Wait until every final report is accepted or refused, for that long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await asyncio.to_thread(self._outbox.pending):
                    await asyncio.sleep(SETTLE_LOOK_S)

    async def _report(self, job: Job) -> None:
        assert job.outcome is not None
        report = self._client.final_report(
            ClaimedJob(job.id, {"musetalk_job_id": job.id}),
            end_of(self._service.publish(job.outcome), job.progress.fraction),
            config_label=self._options.config_label,
            batch_size=self._batch_size(),
        )
        await self._outbox.put(report)

    async def _cancel(self, job_id: str) -> None:
        await self._service.cancel(job_id)

    async def _look(self, job_id: str) -> Job | None:
        for pause_s in LOOK_PAUSES_S:
            try:
                return await self._service.get(job_id)
            except StateUnavailable:
                await asyncio.sleep(pause_s)
        return await self._service.get(job_id)
