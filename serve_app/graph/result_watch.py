"""Detects that results of calls exist, without fetching them.

Results are large, and they are needed elsewhere.

Serve reports a result to its caller only by delivering it. Ray reports whether the object exists.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ray

POLL_S = 0.25

Callback = Callable[[], None]


class ResultWatch:
    """Calls back when results exist.

    A call that failed counts as well, so the caller that awaits it has to take that back.
    """

    def __init__(self) -> None:
        self._sent: set[asyncio.Task[Any]] = set()  # calls on their way to a replica
        self._refs: dict[ray.ObjectRef[Any], Callback] = {}

    def watch(self, response: Any, callback: Callback) -> None:
        """Call `callback`, once, when the result of that call exists."""
        sending = asyncio.ensure_future(response._to_object_ref())
        # It is never cancelled, because that would cancel the call itself.
        self._sent.add(sending)
        sending.add_done_callback(lambda done: self._assigned(done, callback))

    def poll(self) -> None:
        """Call back for the results that exist by now."""
        if not self._refs:
            return
        refs = list(self._refs)
        existing, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in existing:
            self._refs.pop(ref)()

    def _assigned(self, sending: "asyncio.Task[Any]", callback: Callback) -> None:
        self._sent.discard(sending)
        if not sending.cancelled() and sending.exception() is None:
            self._refs[sending.result()] = callback


@asynccontextmanager
async def watch_results() -> AsyncIterator[ResultWatch]:
    """Poll for results as long as the context lasts."""
    watch = ResultWatch()

    async def poll_forever() -> None:
        while True:
            await asyncio.sleep(POLL_S)
            watch.poll()

    polling = asyncio.create_task(poll_forever())
    try:
        yield watch
    finally:
        polling.cancel()
