"""Frees the results that no call needs any more.

In Ray 2.60 the response of a Serve call is part of a reference cycle: it holds the function that
cancels the wait for its result, and that function holds it. A result that nobody uses any more
therefore stays in the object store until Python collects its oldest generation, which is rare in a
process with many long-lived objects. The blocks of one long job could fill the store before that.
"""

import asyncio
import gc
from collections.abc import Callable

PAUSE_S = 5.0


async def free_unused_results(is_at_work: Callable[[], bool], pause_s: float = PAUSE_S) -> None:
    """Collect cycles every `pause_s` while jobs run, and once afterwards. This never returns.

    What exists at the start lives as long as the process, so it is left out of every collection.
    That makes one take a few milliseconds of the event loop's time.
    """
    gc.collect()
    gc.freeze()
    was_at_work = False
    while True:
        await asyncio.sleep(pause_s)
        at_work = is_at_work()
        if at_work or was_at_work:
            gc.collect()
        was_at_work = at_work
