"""An event loop whose common threads are all taken, as a stalled disk or resolver takes them."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def threads_taken() -> Iterator[None]:
    """Leave `asyncio.to_thread` no thread in this loop for as long as the context lasts."""
    go_on = threading.Event()
    pool = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    stalled = pool.submit(go_on.wait, 30)
    try:
        yield
    finally:
        go_on.set()
        stalled.result()
