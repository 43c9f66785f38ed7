"""Whether every stage can take a job, and what it does it with; asked often, looked up seldom."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve_app.graph.pools import Graph
from serve_app.graph.transfers import Description

logger = logging.getLogger(__name__)

FRESH_S = 2.0  # a look at the controller costs about 10 ms
SOON_S = 0.25  # while something is missing: whoever waits for the start asks often
CALL_TIMEOUT_S = 10.0
PREFLIGHT_TIMEOUT_S = 60.0
_UNANSWERED = (TimeoutError, RayError, RayServeException)


class Readiness:
    """Asks Serve's controller which deployments have a running replica."""

    def __init__(self, graph: Graph, app_name: str) -> None:
        self._graph = graph
        self._app_name = app_name
        self._looked_at = float("-inf")
        self._ready = False
        self._description: Description | None = None
        self._looking: asyncio.Task[None] | None = None
        self._asking: asyncio.Future[set[str]] | None = None
        # Of its own: slow names and disks fill the loop's common threads, and `/hc` is due all the
        # same.
        self._thread = ThreadPoolExecutor(1, "readiness")

    async def is_ready(self) -> bool:
        """Return whether a Preprocessor, a Finisher and a Generator of some pool are running.

        Looking it up is no part of the request that asks: a client that goes away would have Ray
        cancel the calls within, from another thread than that of their event loop.
        """
        if time.monotonic() - self._looked_at > (FRESH_S if self._ready else SOON_S):
            if self._looking is None:
                self._looking = asyncio.create_task(self._refresh(), context=Context())
            await asyncio.wait({self._looking})
        return self._ready

    def facts(self) -> dict[str, Any]:
        """Return engine, model version, landmarks and device; empty before the first readiness."""
        return {} if self._description is None else asdict(self._description)

    def description(self) -> Description:
        """Return what draws here; known once `is_ready` was true."""
        assert self._description is not None, "no job starts before readiness"
        return self._description

    async def preflight(self) -> dict[str, str]:
        """Let one replica of each stage use everything that it depends on."""
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
            self._ready = await self._look()
        except Exception:
            logger.exception("readiness cannot be found out")
            self._ready = False
        finally:
            self._looked_at = time.monotonic()
            self._looking = None

    async def _look(self) -> bool:
        running = await self._running()
        pools = [pool for pool in self._graph.pools if f"Generator-{pool.name}" in running]
        if not {"Preprocessor", "Finisher"} <= running or not pools:
            return False
        if self._description is None:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    self._description = await pools[0].handle.describe.remote()
            except (*_UNANSWERED, asyncio.CancelledError) as exc:  # Ray's own; nobody here cancels
                logger.warning("generator does not answer", extra={"error": type(exc).__name__})
                return False
        return True

    async def _running(self) -> set[str]:
        """Return the deployments that run; none while the controller does not answer.

        One thread at most waits for it, however often this is asked.
        """
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._asking = loop.run_in_executor(self._thread, self._ask_controller)
        done, _ = await asyncio.wait({self._asking}, timeout=CALL_TIMEOUT_S)
        if not done:
            logger.warning("Serve's controller does not answer")
            return set()
        asked, self._asking = self._asking, None
        try:
            return asked.result()
        except Exception:
            # Serve raises what it likes while its controller is away or comes back.
            logger.exception("Serve's controller cannot be asked")
            return set()

    def _ask_controller(self) -> set[str]:
        application = serve.status().applications.get(self._app_name)
        if application is None:
            return set()
        return {
            name
            for name, deployment in application.deployments.items()
            if deployment.replica_states.get("RUNNING", 0) > 0
        }
