"""Estimates of jobs, and what they are learnt from: the newest successes of the registry, and each
job that succeeds here.
"""

from __future__ import annotations

import uuid

from musetalk_pipeline.measure import JobSize
from musetalk_pipeline.options import JobOptions
from orchestrator.store.errors import StoreUnavailable
from serve_app.contract.outcomes import Outcome, Success
from serve_app.contract.requests import JobRequest
from serve_app.estimates.estimator import Estimate, Estimator
from serve_app.estimates.past_jobs import REMEMBERED
from serve_app.graph.driver import JobDriver
from serve_app.graph.transfers import Assignment, length_of_output
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads


class JobEstimates:
    """Makes estimates. `defaults`: of the deployment, for what a request leaves out."""

    def __init__(
        self,
        estimator: Estimator,
        driver: JobDriver,
        defaults: JobOptions,
        registry: JobRegistry,
        threads: StateThreads,
    ) -> None:
        self._estimator = estimator
        self._driver = driver
        self._defaults = defaults
        self._registry = registry
        self._threads = threads
        self._has_read = False

    async def estimate(self, request: JobRequest) -> tuple[JobSize, Estimate]:
        """Return how large the output of `request` would be, and what the job would take.

        Raises:
            PipelineError: the request cannot be done.
            StoreUnavailable: the jobs that wait cannot be counted.
        """
        options, attempt_id = request.options(self._defaults), uuid.uuid4().hex
        assignment = Assignment(attempt_id, None, request.musetalk_job_id, 1, request, options)
        size = await self._driver.measure(assignment)
        await self.read_once()
        unfinished = await self._threads.read(self._registry.unfinished)
        return size, self._estimator.estimate(length_of_output(size), unfinished)

    async def read_once(self) -> None:
        """Learn from the jobs of earlier processes, unless that has been done. It is tried again
        at the next call if the registry cannot be read now.
        """
        if self._has_read:
            return
        self._has_read = True
        try:
            newest = await self._threads.read(self._registry.newest_metrics, REMEMBERED)
        except StoreUnavailable:
            self._has_read = False
            return
        self._estimator.past.extend_back(newest)

    def learn(self, outcome: Outcome) -> None:
        """Learn from a job that has ended here."""
        if isinstance(outcome, Success):
            self._estimator.past.add(outcome.metrics)
