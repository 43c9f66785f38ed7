"""Runs blocking calls off the event loop, in a bounded pool of threads."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from musetalk_pipeline.cost import EngineClock, Measured, StageName, measure
from musetalk_pipeline.errors import GpuLost, JobCancelled

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class StageThreads:
    """A bounded pool of threads for one replica's pipeline calls.

    A call that loses the GPU ends this process, because no later one could succeed. Serve starts
    another replica, and the driver repeats the call there, as after any death of a replica.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: _call(function, *args, **kwargs))

    async def measured(
        self,
        stage: StageName,
        frames: int,
        work: Callable[[Callable[[], None]], T],
        inputs: Iterable[Measured[Any]] = (),
        clock: EngineClock | None = None,
    ) -> Measured[T]:
        """Run `work` as `run_cancellable` does, and measure it and its wait for a thread."""
        asked_at = time.monotonic()
        return await self.run_cancellable(
            lambda check: measure(
                stage, frames, lambda: work(check), inputs, clock=clock, asked_at=asked_at
            )
        )

    def run_here(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread of the pool and wait for it without an event loop."""
        return self._pool.submit(lambda: _call(function, *args, **kwargs)).result()

    async def run_cancellable(self, function: Callable[[Callable[[], None]], T]) -> T:
        """Run `function` with a check that raises once the caller has gone.

        A thread cannot be killed, so the function calls the check between frames.
        """
        gone = threading.Event()

        def check() -> None:
            if gone.is_set():
                raise JobCancelled("The caller no longer waits for this result.")

        try:
            return await self.run(function, check)
        except asyncio.CancelledError:
            gone.set()
            raise


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except GpuLost:
        logger.exception("the GPU is lost, this replica ends")
        logging.shutdown()
        os._exit(1)
