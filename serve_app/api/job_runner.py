"""The background work of one ingress: slots that run and claim jobs, webhooks, reports, draining.

Jobs run inside accepted requests to the deployment's own handle; jobs/slots.py says why.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serve_app.api.services import Services
from serve_app.graph.departure import Departure
from serve_app.graph.unused_results import free_unused_results
from serve_app.jobs.queue_length import show_queue_length
from serve_app.jobs.slots import Slots
from serve_app.telemetry.background import run_again
from serve_app.telemetry.logs import LAST_WORDS

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  # enough to answer the callers whose jobs have ended
REPORT_S = 5.0  # enough for an orchestrator that responds to accept a report
WAIT_S = 0.05
DEPARTURE_POLL_S = 0.5  # Serve gives no other sign that it stops a replica


class JobRunner:
    """Runs the jobs of one ingress.

    Args:
        call: sends a request for `run_next(slot)` to this deployment; Serve chooses the replica.
        fetch_ahead: slots in addition to those that work on jobs; their jobs download their files
            and wait for a place.
        departure: tells when Serve stops this replica. None: it is stopped by `drain` alone.
        handover_s: how long running jobs may go on while the application is deployed again.
    """

    def __init__(
        self,
        services: Services,
        call: Callable[[int], Awaitable[None]],
        *,
        fetch_ahead: int = 0,
        departure: Departure | None = None,
        handover_s: float = 0.0,
    ) -> None:
        self._services = services
        self._slots = Slots(call, self.do_next)
        services.jobs.on_work = self._slots.wake
        self._n_slots = services.capacity + fetch_ahead
        self._departure = departure
        self._handover_s = handover_s
        self._tasks: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[None] | None = None
        self._at_work: set[asyncio.Task[Any]] = set()  # requests that run a job, or look for one
        self._is_handing_back = False
        self._is_last = False  # nothing of this machine resumes what is handed back

    def start(self) -> None:
        """Start the slots and the loops behind webhooks, claims, reports and the drain."""
        for slot in range(self._n_slots):
            self._tasks.append(asyncio.create_task(self._slots.keep(slot)))
        services = self._services
        self._tasks.append(asyncio.create_task(self._drain_on_request()))
        self._tasks.append(asyncio.create_task(self._hand_back_on_request()))
        if self._departure is not None:
            self._tasks.append(asyncio.create_task(self._leave_with(self._departure)))
        self._keep_running("queue length", lambda: show_queue_length(services.jobs))
        self._keep_running(
            "unused results", lambda: free_unused_results(lambda: services.jobs.active_jobs > 0)
        )
        if (webhooks := services.webhooks) is not None:
            self._keep_running("webhooks", webhooks.deliver_forever)
        if services.polling is not None:
            self._keep_running("polling", services.polling.start)
        if (scaling := services.scaling) is not None:
            unfinished = services.jobs.unfinished
            self._keep_running("scaling", lambda: scaling.follow_forever(unfinished))
        if services.reports is not None:
            self._keep_running("reports", services.reports.deliver_forever)

    async def run_next(self, slot: int) -> None:
        """Run one job if one arrives within a few seconds. To be called inside a request."""
        await self._slots.run_next(slot)

    async def drain(self) -> None:
        """Begin no more jobs; return when the running ones have ended and were answered.

        Queued jobs stay in the registry for the next start; their callers are told so.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        self._services.availability.is_stopping = True
        self._services.draining.requested.set()
        self._services.jobs.leave_queue()
        await self._slots.stop()
        if self._services.polling is not None and (self._is_last or not self._is_handing_back):
            await self._services.polling.leave("It was stopped.")
        until = time.monotonic() + ANSWER_S
        while self._services.open_calls.count and time.monotonic() < until:
            await asyncio.sleep(WAIT_S)
        if self._services.reports is not None:
            await self._services.reports.settle(REPORT_S)  # the disk may go with the container
        self._services.draining.over.set()
        logger.info(LAST_WORDS)

    def hand_back(self) -> None:
        """End the running jobs, which go back into the queue, and begin no others.

        A claimed job stays claimed: the next owner of this worker's identity resumes it.
        """
        self._services.availability.is_stopping = True
        self._is_handing_back = True
        for request in self._at_work:
            request.cancel()

    async def leave(self) -> None:
        """End the running jobs at once, for good: an orchestrator gives them to other workers."""
        self._is_last = True
        self.hand_back()
        await self.drain()

    async def aclose(self) -> None:
        """Cancel what `start` began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._services.polling is not None:
            await self._services.polling.aclose()

    async def do_next(self, slot: int) -> bool:
        """Run a queued job, or one that the orchestrator hands out; False if there is none."""
        request = asyncio.current_task()
        assert request is not None
        self._at_work.add(request)
        try:
            return await self._do_next(slot)
        except asyncio.CancelledError:
            if not self._is_handing_back:
                raise
            request.uncancel()  # the job is back in the queue, and the request ends normally
            return True
        finally:
            self._at_work.discard(request)

    async def _do_next(self, slot: int) -> bool:
        services = self._services
        woken = self._slots.woken
        runner = None if services.reports is None else services.reports.run_reported
        if await services.availability.may_begin() and await services.jobs.run_next(runner):
            return True
        # A job that would wait here should rather be claimed by another worker.
        has_place = slot < services.capacity and services.jobs.active_jobs < services.most_claimed()
        if services.availability.is_stopping or not has_place or services.polling is None:
            return False
        return await services.polling.claim_and_run(woken)

    async def _drain_on_request(self) -> None:
        await self._services.draining.requested.wait()
        await self.drain()

    async def _hand_back_on_request(self) -> None:
        await self._services.draining.hand_back.wait()
        self.hand_back()

    async def _leave_with(self, departure: Departure) -> None:
        """Drain when Serve stops this replica.

        The stages go with a deleted application, so a job cannot end any more. A new ingress waits
        for this one, so it does not wait for long jobs either.
        """
        while not departure.has_begun():
            await asyncio.sleep(DEPARTURE_POLL_S)
        self._services.draining.requested.set()
        is_deletion = await departure.is_deletion()
        self._is_last = is_deletion
        logger.info("this replica is stopped", extra={"is_deletion": is_deletion})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0 if is_deletion else self._handover_s):
                await self._services.draining.over.wait()
        self._services.draining.hand_back.set()

    def _keep_running(self, name: str, target: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(run_again(name, target)))
