"""Whether every stage can take a job, and what it uses for it; the result is kept for a moment."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import asdict, dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeStatus

from serve_app.graph.pools import Graph
from serve_app.graph.transfers import Description

logger = logging.getLogger(__name__)

PREFLIGHT_TIMEOUT_S = 60.0
_UNANSWERED = (TimeoutError, RayError, RayServeException)


@dataclass(frozen=True, slots=True)
class ReadinessTimes:
    """How long a result is kept, in seconds, and how long a call may take.

    `ready_s`: while ready; a query of the controller costs about 10 ms. `unready_s`: while
    something is missing, because clients that wait for the start poll often.
    """

    ready_s: float = 2.0
    unready_s: float = 0.25
    call_timeout_s: float = 10.0


DEFAULT_TIMES = ReadinessTimes()


class Readiness:
    """Finds out from Serve's controller which deployments have a running replica.

    `serve_status`: the query of the controller.
    """

    def __init__(
        self,
        graph: Graph,
        app_name: str,
        *,
        times: ReadinessTimes = DEFAULT_TIMES,
        serve_status: Callable[[], ServeStatus] = serve.status,
    ) -> None:
        self._times = times
        self._serve_status = serve_status
        self._graph = graph
        self._app_name = app_name
        self._refreshed_at = float("-inf")
        self._ready = False
        self._description: Description | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._query: asyncio.Future[set[str]] | None = None
        # A thread of its own, because slow name servers and disks can fill the loop's common ones,
        # and `/hc` must be answered in any case.
        self._thread = ThreadPoolExecutor(1, "readiness")

    async def is_ready(self) -> bool:
        """Return whether a Preprocessor, a Finisher and a Generator of some pool are running.

        The refresh runs outside the context of the request that triggers it. Ray would otherwise
        cancel its calls when that request's client goes away, and from another thread than that of
        their event loop.
        """
        times = self._times
        kept_s = times.ready_s if self._ready else times.unready_s
        if time.monotonic() - self._refreshed_at > kept_s:
            if self._refreshing is None:
                self._refreshing = asyncio.create_task(self._refresh(), context=Context())
            await asyncio.wait({self._refreshing})
        return self._ready

    def facts(self) -> dict[str, Any]:
        """Return engine, model version, landmarks and device; empty before the first readiness."""
        return {} if self._description is None else asdict(self._description)

    def description(self) -> Description:
        """Return what draws here. Call this only after `is_ready` has been true."""
        assert self._description is not None, "no job starts before readiness"
        return self._description

    async def preflight(self) -> dict[str, str]:
        """Make one replica of each stage try everything that it depends on."""
        calls = {
            "preprocessor": self._graph.preprocessor,
            "finisher": self._graph.finisher,
            **{f"generator-{pool.name}": pool.handle for pool in self._graph.pools},
        }
        checks: dict[str, str] = {}
        for stage, handle in calls.items():
            try:
                async with asyncio.timeout(PREFLIGHT_TIMEOUT_S):
                    found: dict[str, str] = await handle.preflight.remote()
            except _UNANSWERED as exc:
                found = {"replica": f"no answer ({type(exc).__name__})"}
            checks |= {f"{stage}/{name}": result for name, result in found.items()}
        return checks

    async def _refresh(self) -> None:
        try:
            self._ready = await self._are_all_running()
        except Exception:
            logger.exception("readiness cannot be determined")
            self._ready = False
        finally:
            self._refreshed_at = time.monotonic()
            self._refreshing = None

    async def _are_all_running(self) -> bool:
        running = await self._running()
        pools = [pool for pool in self._graph.pools if f"Generator-{pool.name}" in running]
        if not {"Preprocessor", "Finisher"} <= running or not pools:
            return False
        if self._description is None:
            try:
                async with asyncio.timeout(self._times.call_timeout_s):
                    self._description = await pools[0].handle.describe.remote()
            except (*_UNANSWERED, asyncio.CancelledError) as exc:  # only Ray cancels it
                logger.warning("generator does not answer", extra={"error": type(exc).__name__})
                return False
        return True

    async def _running(self) -> set[str]:
        """Return the deployments that run; none while the controller does not answer.

        However often this is called, at most one thread waits for the controller.
        """
        if self._query is None:
            loop = asyncio.get_running_loop()
            self._query = loop.run_in_executor(self._thread, self._query_controller)
        done, _ = await asyncio.wait({self._query}, timeout=self._times.call_timeout_s)
        if not done:
            logger.warning("Serve's controller does not answer")
            return set()
        query, self._query = self._query, None
        try:
            return query.result()
        except Exception:
            # Serve raises all kinds of errors while its controller is away or restarts.
            logger.exception("Serve's controller cannot be queried")
            return set()

    def _query_controller(self) -> set[str]:
        application = self._serve_status().applications.get(self._app_name)
        if application is None:
            return set()
        return {
            name
            for name, deployment in application.deployments.items()
            if deployment.replica_states.get("RUNNING", 0) > 0
        }
