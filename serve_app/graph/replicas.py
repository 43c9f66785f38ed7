"""The replicas that run now, kept fresh for everybody in the ingress who needs to know them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass

from serve_app.graph.serve_controller import NO_REPLICAS, ReplicaCounts, pool_deployment

__all__ = ["NO_REPLICAS", "ReplicaCounts", "ReplicaWatch", "WatchTimes", "pool_deployment"]

logger = logging.getLogger(__name__)

Callback = Callable[[ReplicaCounts], None]


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """How often the controller is asked, and how long an answer counts, in seconds.

    `period_s`: between two questions while somebody subscribes; one costs the ingress 0.6 ms.
    `answer_s`: the longest wait for an answer. `keep_s`: how long the last counts stand in for a
    controller that is away. Replicas serve without it, and it is back after one or two seconds.
    """

    period_s: float = 1.0
    answer_s: float = 10.0
    keep_s: float = 60.0


DEFAULT_TIMES = WatchTimes()


class ReplicaWatch:
    """Counts the replicas of the application.

    However often it is asked, at most one question to the controller is open at a time. To be used
    in one event loop.

    Args:
        ask: asks the controller once; `ServeController.replica_counts`.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[ReplicaCounts]], *, times: WatchTimes = DEFAULT_TIMES
    ) -> None:
        self._ask = ask
        self._times = times
        self._latest = NO_REPLICAS
        self._counted_at = float("-inf")
        self._question: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._callbacks: list[Callback] = []
        self._fault = ""  # why the controller cannot be asked
        self._refreshing: asyncio.Task[None] | None = None

    def latest(self) -> ReplicaCounts:
        """Return the last counts; none before the first answer, nor when it is too old."""
        age_s = time.monotonic() - self._counted_at
        return self._latest if age_s <= self._times.keep_s else NO_REPLICAS

    async def counts(self, max_age_s: float) -> ReplicaCounts:
        """Return counts that are at most `max_age_s` old, or `latest` if the controller is away."""
        if time.monotonic() - self._counted_at > max_age_s:
            await self._refresh()
        return self.latest()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` in the event loop after each change; return what ends that.

        The first call follows the next answer, also if nothing changes then.
        """
        seen: list[ReplicaCounts] = []

        def tell(counts: ReplicaCounts) -> None:
            if seen != [counts]:
                seen[:] = [counts]
                callback(counts)

        self._callbacks.append(tell)
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._keep_fresh(), context=Context())
        return lambda: self._unsubscribe(tell)

    def _unsubscribe(self, callback: Callback) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)
        if not self._callbacks and self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None

    async def _keep_fresh(self) -> None:
        while True:
            await self._refresh()
            self._tell(self.latest())  # counts that became too old are a change as well
            await asyncio.sleep(self._times.period_s)

    async def _refresh(self) -> None:
        """Wait for an answer until the question is `answer_s` old; ask if none is open.

        The question is outside the context of the request that needs it. Ray would otherwise cancel
        its call when that request's client goes away, and from another thread than the loop's.
        """
        age_s = time.monotonic() - self._asked_at
        if self._question is not None and age_s > self._times.keep_s:
            self._question.cancel()  # its answer is lost
            self._question = None
        if self._question is None:
            self._asked_at = time.monotonic()
            self._question = asyncio.create_task(self._ask_once(), context=Context())
        left_s = self._asked_at + self._times.answer_s - time.monotonic()
        done, _ = await asyncio.wait({self._question}, timeout=max(0.0, left_s))
        if not done:
            self._note("it does not answer")

    async def _ask_once(self) -> None:
        try:
            self._latest = await self._ask()
        except Exception as exc:
            # Ray raises all kinds of errors while the controller is away or restarts.
            self._note(f"{type(exc).__name__}: {exc}"[:500])
        else:
            self._counted_at = time.monotonic()
            self._note("")
            self._tell(self._latest)
        finally:
            if self._question is asyncio.current_task():
                self._question = None

    def _note(self, fault: str) -> None:
        """Log when the controller goes away, and when it is back."""
        if fault and not self._fault:
            logger.warning("Serve's controller cannot be asked", extra={"error": fault})
        if self._fault and not fault:
            logger.info("Serve's controller answers again")
        self._fault = fault

    def _tell(self, counts: ReplicaCounts) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(counts)
            except Exception:
                logger.exception("a change of the replicas was not taken in")
