"""Work in the background that must not end unnoticed: a task's failure is otherwise never seen."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE_S = 5.0


async def run_again(
    name: str, work: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S
) -> None:
    """Run `work` to its end; start it anew whenever it fails (a full disk, a locked file)."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("background work failed, starting anew", extra={"work": name})
            await asyncio.sleep(pause_s)
        else:
            return
