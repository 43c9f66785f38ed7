"""What the routes share, built once at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Request

from orchestrator.job_api.batches import batch_body
from orchestrator.outputs import OutputBucket
from orchestrator.service.access import Access, ClientCaller, WorkerCaller
from orchestrator.service.bell import Bell, News
from orchestrator.service.fleet_file import FleetPlan
from orchestrator.service.job_messages import job_body
from orchestrator.service.metrics import Metrics
from orchestrator.service.settings import Settings
from orchestrator.service.uploads import Uploads
from orchestrator.store import keys
from orchestrator.store.batch_values import Batch, BatchedJob, batch_of
from orchestrator.store.delivery_values import TakenDelivery
from orchestrator.store.errors import StoreError
from orchestrator.store.jobs import job_of
from orchestrator.store.store import JobStore
from orchestrator.store.threads import Run
from orchestrator.store.values import Job, StoredKey
from orchestrator.webhooks.posting import Poster
from orchestrator.webhooks.rules import DeliveryRules
from orchestrator.webhooks.sender import DeliveryLoop, client_key

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Operations at once; the others wait in order. Python runs one thread at a time, and an operation
# waits for its turn after each exchange with the database: with 16 threads, the 99th percentile of
# a claim, which has most exchanges, was 36 ms instead of 29 (benchmarks/orchestrator.py). Fewer
# threads would be too few for a database that is a network away.
STORE_THREADS = 6
SWEEP_S = 1.0
NUDGED = 8  # held claims that a sweep wakes while jobs wait
FORGET_S = 60.0


class Services:
    """The store, who may call, and who waits. `is_stopping` is set when the process has to end.

    `fleet_plan`: what the scaling loop may rent, if it is on.
    """

    def __init__(
        self, settings: Settings, store: JobStore, fleet_plan: FleetPlan | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.fleet_plan = fleet_plan
        self.bell = Bell()
        self.news = News()
        self.metrics = Metrics()
        self.is_stopping = asyncio.Event()
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")
        self.uploads = _uploads(settings, store, self.run)
        self.deliveries = self._delivery_loop()
        self.access = Access(settings, self._find_key, self._is_right)

    async def run(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something that blocks, such as an operation of the store, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(act, *args, **kwargs))

    def shown(self, job: Job) -> Job:
        """Return a job with an address at which its output can be read from now on."""
        return job if self.uploads is None else self.uploads.shown(job)

    def body(self, job: Job) -> dict[str, Any]:
        """Return a job as clients see it."""
        return job_body(self.shown(job))

    def batch_body(self, batch: Batch) -> dict[str, Any]:
        """Return a batch as clients see it."""
        return batch_body(batch, self._output_url)

    def wake_deliveries(self) -> None:
        """Send the webhooks of a job that has just ended at once."""
        if self.deliveries is not None:
            self.deliveries.wake()

    async def deliver_forever(self) -> None:
        """Send webhooks until cancelled."""
        if self.deliveries is not None:
            await self.deliveries.deliver_forever()

    def stop(self) -> None:
        """Let all calls that wait return."""
        self.is_stopping.set()
        self.bell.ring(len(self.bell))
        self.news.tell_all()

    async def sweep_forever(self) -> None:
        """Return expired jobs to the queue, wake claims for waiting jobs, and forget old jobs."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time()
        while not self.is_stopping.is_set():
            try:
                await self._sweep()
                if loop.time() >= forget_at:
                    await self.run(self.store.forget)
                    if self.uploads is not None:
                        await self.uploads.sweep()
                    forget_at = loop.time() + FORGET_S
            except StoreError as error:
                logger.error("sweeping failed", extra={"error": str(error)})
            except Exception:
                # The boundary of a loop that no unexpected error may end: leases depend on it.
                logger.exception("sweeping failed unexpectedly")
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self.is_stopping.wait()

    async def aclose(self) -> None:
        """Wait for what still runs in threads, and close the store."""
        if self.uploads is not None:
            await self.uploads.close()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self.store.close)

    async def _sweep(self) -> None:
        for lost in await self.run(self.store.expire):
            self.metrics.lost_leases.inc()
            facts = {"job_id": lost.job_id, "attempt": lost.number, "worker_id": lost.worker_id}
            logger.warning("lease expired", extra=facts)
            self.news.tell(lost.job_id or "")
        if len(self.bell) and await self.run(self.store.count_queued, 1):
            # A job that another process has queued, that a silent worker has lost, or that has
            # waited for long enough to overflow.
            self.bell.nudge(NUDGED)

    def _output_url(self, job: BatchedJob) -> str | None:
        return job.output_url if self.uploads is None else self.uploads.output_url(job)

    def _delivery_loop(self) -> DeliveryLoop | None:
        secret = self.settings.webhook_secret
        if secret is None:
            return None
        rules = DeliveryRules()
        poster = Poster(self.settings.webhook_targets(), rules.timeout_s)
        return DeliveryLoop(
            self.store,
            self.run,
            poster,
            partial(client_key, secret.get_secret_value()),
            self._data_of,
            rules,
            count=lambda result: self.metrics.deliveries.labels(result).inc(),
        )

    def _data_of(self, taken: TakenDelivery) -> dict[str, Any]:
        """Return what a webhook is about, with addresses that can be read from now on."""
        if taken.is_of_batch:
            return self.batch_body(batch_of(taken.snapshot))
        return self.body(job_of(taken.snapshot))

    async def _find_key(self, key_id: str) -> StoredKey | None:
        return await self.run(self.store.find_key, key_id)

    async def _is_right(self, presented: str, stored: StoredKey) -> bool:
        return await self.run(keys.is_right, presented, stored)


def _uploads(settings: Settings, store: JobStore, run: Run) -> Uploads | None:
    bucket, valid_s = settings.bucket(), settings.rules().upload_s
    if bucket is None or valid_s is None:
        return None
    return Uploads(OutputBucket(bucket), store, run, int(valid_s))


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _worker(request: Request, services: ServicesDep) -> WorkerCaller:
    return await services.access.worker(request)


async def _client(request: Request, services: ServicesDep) -> ClientCaller:
    return await services.access.client(request)


async def require_admin(request: Request, services: ServicesDep) -> None:
    """Admit the operator only."""
    await services.access.admin(request)


WorkerDep = Annotated[WorkerCaller, Depends(_worker)]
ClientDep = Annotated[ClientCaller, Depends(_client)]
