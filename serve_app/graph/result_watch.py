"""Waits until the result of a call exists, without fetching it.

Results are large, and they are needed elsewhere. Serve reports a result to its caller only by
delivering it. Ray reports whether the object exists, by an event.
"""

import asyncio
from typing import Any


async def until_result_exists(response: Any) -> None:
    """Return when the result of a Serve call exists.

    The result of a call that failed exists as well; whoever fetches it, or passes it on, gets the
    error. A call that could not be sent raises here.
    """
    sending = asyncio.ensure_future(response._to_object_ref())
    try:
        # Cancelling it would cancel the call itself, from another thread than its event loop's.
        ref = await asyncio.shield(sending)
    except asyncio.CancelledError:
        sending.add_done_callback(_forget)
        raise
    loop = asyncio.get_running_loop()
    exists: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not exists.done():
            exists.set_result(None)

    # Ray calls back in a thread of its own, without pulling the object to this node.
    stop_waiting = ref._on_ready(lambda _: loop.call_soon_threadsafe(wake))
    try:
        await exists
    except asyncio.CancelledError:
        stop_waiting()
        raise


def _forget(sending: "asyncio.Future[Any]") -> None:
    """Take note of an error that nobody waits for any more."""
    if not sending.cancelled():
        sending.exception()
