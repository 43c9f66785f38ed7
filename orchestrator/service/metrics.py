"""Every metric of the service, for Prometheus. Few labels with few values, and no ids.

What happens is counted where it happens. How many jobs and workers there are is read from the
store when Prometheus asks, so that several service processes on one database agree on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.store.overview import Overview
from orchestrator.store.states import JobState

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
OTHER = "other"  # the route of requests that no route matches


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.claims = Counter(
            "orchestrator_claims",
            "Claims by what they were answered: job, none, drained.",
            ["answer"],
            registry=self.registry,
        )
        self.claim_seconds = Histogram(
            "orchestrator_claim_seconds",
            "Seconds of one look for a job in the store. The time that a claim is held for is not "
            "in it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.reports = Counter(
            "orchestrator_reports",
            "Reports by what they say: progress, succeeded, failed. Repeated final ones count too.",
            ["kind"],
            registry=self.registry,
        )
        self.lost_leases = Counter(
            "orchestrator_lost_leases",
            "Leases that ended because their worker was silent.",
            registry=self.registry,
        )
        self.deliveries = Counter(
            "orchestrator_deliveries",
            "Tries to deliver a webhook by what became of them: delivered, waiting, given_up.",
            ["result"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "orchestrator_request_seconds",
            "Seconds of requests by route and status. Held claims and followed jobs wait in it.",
            ["route", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self, seen: Overview) -> bytes:
        """Return everything in Prometheus' text format."""
        gauges = CollectorRegistry()
        gauges.register(_Gauges(seen))
        return generate_latest(self.registry) + generate_latest(gauges)


class _Gauges(Collector):
    def __init__(self, seen: Overview) -> None:
        self._seen = seen

    def collect(self) -> Iterable[GaugeMetricFamily]:
        jobs = GaugeMetricFamily(
            "orchestrator_jobs",
            "Jobs by state: those that wait, run or are dead, and those ended in the last hour.",
            labels=["state"],
        )
        for state in JobState:
            jobs.add_metric([state], self._seen.jobs.get(state, 0))
        yield jobs
        age = self._seen.oldest_queued_s or 0.0
        text = "Seconds that the job that has waited for longest has waited."
        yield GaugeMetricFamily("orchestrator_queue_age_seconds", text, value=age)
        workers = GaugeMetricFamily(
            "orchestrator_workers",
            "Workers by tier and state: busy, idle, draining, offline.",
            labels=["tier", "state"],
        )
        for count in self._seen.workers:
            workers.add_metric([count.worker_type, count.state], count.workers)
        yield workers


class MeasureRequests:
    """ASGI middleware that measures each request under the pattern of its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and measure it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            labels = route, str(status)
            self._metrics.request_seconds.labels(*labels).observe(time.monotonic() - began)
