"""The background work of one ingress: slots that run and claim jobs, webhooks, reports, draining.

Jobs run inside accepted requests to the deployment's own handle; jobs/slots.py says why.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serve_app.api.notifications import notify_forever
from serve_app.api.services import Services
from serve_app.jobs.slots import Slots
from serve_app.telemetry.background import run_again
from serve_app.telemetry.logs import LAST_WORDS

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  # enough to answer the callers whose jobs have ended
REPORT_S = 5.0  # enough for an orchestrator that responds to accept a report
WAIT_S = 0.05


class JobRunner:
    """Runs the jobs of one ingress.

    Args:
        call: sends a request for `run_next(slot)` to this deployment; Serve chooses the replica.
        fetch_ahead: slots in addition to those that work on jobs; their jobs download their files
            and wait for a place.
    """

    def __init__(
        self,
        services: Services,
        call: Callable[[int], Awaitable[None]],
        *,
        fetch_ahead: int = 0,
    ) -> None:
        self._services = services
        self._slots = Slots(call, self.do_next)
        services.jobs.on_work = self._slots.wake
        self._n_slots = services.capacity + fetch_ahead
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the slots and the loops behind webhooks, claims and reports."""
        for slot in range(self._n_slots):
            self._tasks.append(asyncio.create_task(self._slots.keep(slot)))
        services = self._services
        if (webhooks := services.webhooks) is not None:
            jobs, links = services.jobs, services.links.for_notifications()
            self._keep_running("webhooks", webhooks.deliver_forever)
            self._keep_running(
                "notifications",
                lambda: notify_forever(jobs.registry, jobs.threads, webhooks, links),
            )
        if services.polling is not None:
            self._keep_running("polling", services.polling.start)
        if services.reports is not None:
            self._keep_running("reports", services.reports.deliver_forever)

    async def run_next(self, slot: int) -> None:
        """Run one job if one arrives within a few seconds. To be called inside a request."""
        await self._slots.run_next(slot)

    async def drain(self) -> None:
        """Begin no more jobs; return when the running ones have ended and were answered.

        Queued jobs stay in the registry for the next start; their callers are disconnected.
        """
        self._services.availability.is_stopping = True
        await self._slots.stop()
        until = time.monotonic() + ANSWER_S
        while self._services.open_calls.count and time.monotonic() < until:
            await asyncio.sleep(WAIT_S)
        if self._services.reports is not None:
            await self._services.reports.settle(REPORT_S)  # the disk may go with the container
        logger.info(LAST_WORDS)

    async def aclose(self) -> None:
        """Cancel what `start` began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._services.polling is not None:
            await self._services.polling.aclose()

    async def do_next(self, slot: int) -> bool:
        """Run a queued job, or one that the orchestrator hands out; False if there is none."""
        services = self._services
        runner = None if services.reports is None else services.reports.run_reported
        if await services.availability.may_begin() and await services.jobs.run_next(runner):
            return True
        # A job that would wait here should rather be claimed by another worker.
        has_place = slot < services.capacity and services.jobs.active_jobs < services.most_claimed()
        if services.availability.is_stopping or not has_place or services.polling is None:
            return False
        return await services.polling.claim_and_run()

    def _keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(run_again(name, work)))
