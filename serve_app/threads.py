"""Blocking work off the event loop, told when its caller has gone."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """A bounded pool of threads for one replica's pipeline calls."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    async def run_cancellable(self, function: Callable[[threading.Event], T]) -> T:
        """Run `function`, handing it an event that is set when the caller goes away.

        A thread cannot be killed, so the function looks at the event between frames.
        """
        gone = threading.Event()
        try:
            return await self.run(function, gone)
        except asyncio.CancelledError:
            gone.set()
            raise
