"""Calls of stages: their deadlines, and another try after a failure that may pass.

Serve does not retry a call that a replica has accepted, so whoever makes it does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from musetalk_pipeline.errors import PipelineError, Stage, StageFailed
from serve_app.config.settings import DriverSettings
from serve_app.graph.ray_errors import as_pipeline_error, cancel_calls, is_of_ray
from serve_app.graph.result_watch import (
    forget_error,
    until_result_exists,
    until_result_is_lost,
)
from serve_app.scheduling.scheduler import NoReplicaRuns
from serve_app.telemetry.metrics import CALLS_RETRIED

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE_FACTOR = 10  # a call may take so many times what such calls took before


@dataclass(frozen=True, slots=True)
class DriverPauses:
    """How long the driver waits.

    `retry_s`: before the second try of a call, the third, and all that follow. A dead replica's
    replacement serves after 4.4 s on a quiet machine (measured); other replicas of the stage may
    take the call after the first pause already. `keep_s`: between two calls that keep an attempt's
    scratch. `tell_s`: at most for a stage to answer such a call, or one that removes the scratch.
    `release_s`: before the removal is tried again, where a replica did not answer.
    """

    retry_s: tuple[float, ...] = (0.5, 4.0, 10.0)
    keep_s: float = 60.0
    tell_s: float = 10.0
    release_s: tuple[float, ...] = (10.0, 30.0, 60.0)

    def before(self, failures: int) -> float:
        """Return the pause after so many failures."""
        return self.retry_s[min(failures, len(self.retry_s)) - 1]


DEFAULT_PAUSES = DriverPauses()


class PoolLost(StageFailed):
    """The last replica of the pool that was to draw is gone, while another pool runs."""


class ResultLost(StageFailed):
    """What a call needs was on a node that is lost, and has to be made again."""


class StageCalls:
    """Makes calls of stages.

    `exists` waits until the result of a call exists, `is_lost` until one of several is lost.
    """

    def __init__(
        self,
        settings: DriverSettings,
        pauses: DriverPauses = DEFAULT_PAUSES,
        exists: Callable[[Any], Awaitable[None]] = until_result_exists,
        is_lost: Callable[[Sequence[Any]], Awaitable[None]] = until_result_is_lost,
    ) -> None:
        self._settings = settings
        self._exists = exists
        self._is_lost = is_lost
        self.pauses = pauses

    async def result(self, response: Any, timeout_s: float, inputs: Sequence[Any] = ()) -> Any:
        """Return a call's result. However this ends, the call does not run on.

        Raises:
            ResultLost: one of the `inputs`, results of other calls, was lost before.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._unless(response, inputs, None)
        except BaseException:
            cancel_calls([response])
            raise

    async def existing(
        self,
        response: Any,
        timeout_s: float,
        lost: asyncio.Event | None = None,
        *,
        inputs: Sequence[Any] = (),
    ) -> Any:
        """Return the response when its result exists.

        Raises:
            PoolLost: `lost` was set before.
            ResultLost: one of the `inputs`, results of other calls, was lost before.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._unless(self._exists(response), inputs, lost)
        except BaseException:
            cancel_calls([response])
            raise
        return response

    def deadline_s(self, frames: int, expected_s: float | None) -> float:
        """Return the deadline of a call, from the start of its work.

        It is a multiple of what such a call is expected to take. `call_timeout_s` is the least,
        and as long as nothing is known, `seconds_per_frame` adds to it.
        """
        settings = self._settings
        most = settings.call_timeout_s + frames * settings.seconds_per_frame
        if expected_s is None:
            return most
        return min(most, max(settings.call_timeout_s, DEADLINE_FACTOR * expected_s))

    async def repeated(self, once: Callable[[], Awaitable[T]], stage: Stage) -> T:
        """Return what `once` returns; call it again after a failure that may pass.

        Raises:
            PipelineError: the failure that lasts, or happened too often.
        """
        failures = 0
        while True:
            try:
                return await once()
            except BaseException as exc:
                failures += 1
                self.error_of(exc, stage, failures)
            await asyncio.sleep(self.pauses.before(failures))

    def error_of(self, exc: BaseException, stage: Stage, failures: int) -> PipelineError:
        """Return the failure of a call that should be made again, and count it.

        `failures`: including this one.

        Raises:
            PipelineError: the call should not be made again.
        """
        if not isinstance(exc, Exception) and not is_of_ray(exc):
            raise exc
        error = as_pipeline_error(exc, stage)
        is_last = failures >= self._settings.tries or isinstance(error, NoReplicaRuns)
        if not error.retryable or is_last:
            raise error from exc
        CALLS_RETRIED.inc(tags={"stage": str(stage)})
        logger.warning(
            "call failed, trying again",
            extra={
                "stage": str(stage),
                "try": failures,
                "error": error.message,
                "cause": f"{type(exc).__name__}: {exc}"[:500],
            },
        )
        return error

    async def _unless(
        self, work: Awaitable[T], inputs: Sequence[Any], lost: asyncio.Event | None
    ) -> T:
        """Return what `work` returns, unless one of its inputs or its pool is lost before."""
        losses: list[Coroutine[Any, Any, StageFailed]] = []
        if inputs:
            losses.append(self._loss_of_inputs(inputs))
        if lost is not None:
            losses.append(_loss_of_pool(lost))
        if not losses:
            return await work
        working = asyncio.ensure_future(work)
        losing = [asyncio.create_task(loss) for loss in losses]
        try:
            await asyncio.wait({working, *losing}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise next(loss.result() for loss in losing if loss.done())
            return await working
        finally:
            for task in (*losing, working):
                task.cancel()
                task.add_done_callback(forget_error)

    async def _loss_of_inputs(self, inputs: Sequence[Any]) -> StageFailed:
        await self._is_lost(inputs)
        return ResultLost("A result was lost together with its node.")


async def _loss_of_pool(lost: asyncio.Event) -> StageFailed:
    await lost.wait()
    return PoolLost("The last replica of the pool is gone.")
