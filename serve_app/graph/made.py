"""Notices that results of calls exist, without fetching them: they are large, and needed elsewhere.

Serve tells a caller of a result only by giving it. Ray knows more: whether the object exists.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ray

LOOK_S = 0.25

Say = Callable[[], None]


class MadeWatch:
    """Calls back when results exist. A call that failed counts as well: whoever awaits its end has
    to take that back.
    """

    def __init__(self) -> None:
        self._sent: set[asyncio.Task[Any]] = set()  # calls on their way to a replica
        self._refs: dict[ray.ObjectRef[Any], Say] = {}

    def watch(self, response: Any, say: Say) -> None:
        """Call `say`, once, when the result of that call exists."""
        sending = asyncio.ensure_future(response._to_object_ref())
        # Never cancelled: that would cancel the call itself.
        self._sent.add(sending)
        sending.add_done_callback(lambda done: self._assigned(done, say))

    def look(self) -> None:
        """Call back for the results that exist by now."""
        if not self._refs:
            return
        refs = list(self._refs)
        made, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in made:
            self._refs.pop(ref)()

    def _assigned(self, sending: "asyncio.Task[Any]", say: Say) -> None:
        self._sent.discard(sending)
        if not sending.cancelled() and sending.exception() is None:
            self._refs[sending.result()] = say


@asynccontextmanager
async def made_watch() -> AsyncIterator[MadeWatch]:
    """Look for results now and then, for as long as the context lasts."""
    watch = MadeWatch()

    async def look_forever() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            watch.look()

    looking = asyncio.create_task(look_forever())
    try:
        yield watch
    finally:
        looking.cancel()
