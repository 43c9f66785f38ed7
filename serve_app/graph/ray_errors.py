"""Translates what Ray raises into the pipeline's errors, and cancels calls that are not needed."""

import asyncio
import contextlib
import logging
import traceback
from typing import Any

from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from musetalk_pipeline.errors import (
    DeadlineExceeded,
    PipelineError,
    Stage,
    StageFailed,
)

logger = logging.getLogger(__name__)


def as_pipeline_error(exc: BaseException, stage: Stage) -> PipelineError:
    """Return the pipeline's own error inside what Ray raised, or one that names what broke."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, PipelineError) and not isinstance(seen, RayTaskError):
            return seen
        if isinstance(seen, ObjectLostError):
            return StageFailed("A result was lost together with its node.", stage=stage)
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) and cause is not seen else None
    if isinstance(exc, TimeoutError):
        return DeadlineExceeded("A stage did not answer within its deadline.", stage=stage)
    is_lost = isinstance(exc, RayError | RayServeException | asyncio.CancelledError)
    if is_lost and not isinstance(exc, RayTaskError):
        return StageFailed(
            f"A replica was lost or refused the call ({type(exc).__name__}).", stage=stage
        )
    logger.error("stage crashed\n%s", "".join(traceback.format_exception(exc)))
    return StageFailed(f"A stage crashed ({type(exc).__name__}).", stage=stage)


def is_of_ray(exc: BaseException) -> bool:
    """Return whether Ray cancelled the call. Cancelling this task would raise the same error."""
    task = asyncio.current_task()
    is_ours = task is not None and task.cancelling() > 0
    return isinstance(exc, asyncio.CancelledError) and not is_ours


def cancel_calls(responses: list[Any]) -> None:
    """Cancel calls that may be running. Calls that have ended are not affected."""
    for response in responses:
        # Cancelling a call that could not be sent raises what sending it raised, which may be
        # anything: Ray raises an AttributeError if an argument's replica has died.
        with contextlib.suppress(Exception):
            response.cancel()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first
