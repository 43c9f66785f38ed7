"""Background tasks that are started again when they fail, since nobody awaits a task's failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE_S = 5.0


async def run_again(
    name: str, target: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S
) -> None:
    """Run `target` to its end, and start it again whenever it fails (a full disk, a locked file).

    A failure is logged with its trace once, and in one line each time that it repeats.
    """
    traced = ""
    while True:
        try:
            await target()
        except Exception as exc:
            fault = f"{type(exc).__name__}: {exc}"
            logger.error(
                "a background task failed and is started again",
                exc_info=None if fault == traced else exc,
                extra={"task": name, "error": fault},
            )
            traced = fault
            await asyncio.sleep(pause_s)
        else:
            return
