"""Whether every stage can take a job, and what it uses for it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import asdict, dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve_app.graph.pools import Graph, Pool
from serve_app.graph.replicas import ReplicaCounts, ReplicaWatch
from serve_app.graph.transfers import Description

logger = logging.getLogger(__name__)

PREFLIGHT_TIMEOUT_S = 60.0
STAGES = ("Preprocessor", "Finisher")
_UNANSWERED = (TimeoutError, RayError, RayServeException)


@dataclass(frozen=True, slots=True)
class ReadinessTimes:
    """How old the counts may be, in seconds, and how long a call may take.

    `ready_s`: while ready. `unready_s`: while something is missing, because clients that wait for
    the start poll often. `first_answer_s`: how long readiness waits for the first description, so
    that what is ready is also described. A replica that works for a job answers only after that.
    """

    ready_s: float = 2.0
    unready_s: float = 0.25
    first_answer_s: float = 3.0
    call_timeout_s: float = 60.0


DEFAULT_TIMES = ReadinessTimes()


class Readiness:
    """Decides from the running replicas whether a job can run here.

    Args:
        watch: counts the replicas.
        can_start: whether a pool of that name without replicas is started when work waits for it.
        configured: what the configuration says about the engines; it stands in for the description
            of a pool until one has run.
    """

    def __init__(
        self,
        graph: Graph,
        watch: ReplicaWatch,
        configured: Description,
        *,
        can_start: Callable[[str, ReplicaCounts], bool] = lambda pool, counts: False,
        times: ReadinessTimes = DEFAULT_TIMES,
    ) -> None:
        self._graph = graph
        self._watch = watch
        self._configured = configured
        self._can_start = can_start
        self._times = times
        self._is_ready = False
        self._description: Description | None = None
        self._first_asked_at: float | None = None
        self._describing: asyncio.Task[None] | None = None

    async def is_ready(self) -> bool:
        """Return whether a Preprocessor and a Finisher run, and a pool runs or can be started."""
        times = self._times
        counts = await self._watch.counts(times.ready_s if self._is_ready else times.unready_s)
        self._is_ready = await self._can_run(counts)
        return self._is_ready

    async def _can_run(self, counts: ReplicaCounts) -> bool:
        if not all(counts.running.get(stage) for stage in STAGES):
            return False
        running = [pool for pool in self._graph.pools if counts.in_pool(pool.name)]
        if running:
            await self._describe_one_of(running)
            return True
        return any(self._can_start(pool.name, counts) for pool in self._graph.pools)

    def facts(self) -> dict[str, Any]:
        """Return engine, model version, landmarks and device.

        Until a pool has run, these are the configured ones, and nothing is said about the GPU.
        """
        if self._description is not None:
            return asdict(self._description)
        named = ("engine", "model_version", "landmarks", "device")
        return {name: getattr(self._configured, name) for name in named}

    def description(self) -> Description:
        """Return what draws here; what is configured until a pool has run."""
        return self._description or self._configured

    async def preflight(self) -> dict[str, str]:
        """Make one replica of each stage try everything that it depends on."""
        counts = await self._watch.counts(self._times.ready_s)
        checks = {
            **await self._checks_of("preprocessor", self._graph.preprocessor),
            **await self._checks_of("finisher", self._graph.finisher),
        }
        for pool in self._graph.pools:
            stage = f"generator-{pool.name}"
            if not counts.in_pool(pool.name) and self._can_start(pool.name, counts):
                checks[f"{stage}/replica"] = "ok, but none runs until work waits"
            else:
                checks |= await self._checks_of(stage, pool.handle)
        return checks

    async def _checks_of(self, stage: str, handle: Any) -> dict[str, str]:
        try:
            async with asyncio.timeout(PREFLIGHT_TIMEOUT_S):
                found: dict[str, str] = await handle.preflight.remote()
        except _UNANSWERED as exc:
            found = {"replica": f"no answer ({type(exc).__name__})"}
        return {f"{stage}/{name}": result for name, result in found.items()}

    async def _describe_one_of(self, running: list[Pool]) -> None:
        """Have a running pool asked what it is, and wait a moment for the answer the first time.

        The call is outside the context of the request that begins it. Ray would otherwise cancel it
        when that request's client goes away, and from another thread than the loop's.
        """
        if self._description is not None:
            return
        if self._describing is None:
            asking: Coroutine[Any, Any, None] = self._describe(running[0])
            self._describing = asyncio.create_task(asking, context=Context())
        self._first_asked_at = self._first_asked_at or time.monotonic()
        left_s = self._first_asked_at + self._times.first_answer_s - time.monotonic()
        if left_s > 0:
            await asyncio.wait({self._describing}, timeout=left_s)

    async def _describe(self, pool: Pool) -> None:
        try:
            async with asyncio.timeout(self._times.call_timeout_s):
                self._description = await pool.handle.describe.remote()
        except (Exception, asyncio.CancelledError) as exc:  # only Ray cancels it
            logger.warning(
                "generator does not answer",
                extra={"pool": pool.name, "error": type(exc).__name__},
            )
        finally:
            self._describing = None
