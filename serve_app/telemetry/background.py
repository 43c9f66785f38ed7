"""Work in the background that must not end unnoticed: a task's failure is otherwise never seen."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE_S = 5.0


async def run_again(
    name: str, work: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S
) -> None:
    """Run `work` to its end; start it anew whenever it fails (a full disk, a locked file).

    A fault that lasts is traced once and said in one line each time after that.
    """
    traced = ""
    while True:
        try:
            await work()
        except Exception as exc:
            fault = f"{type(exc).__name__}: {exc}"
            logger.error(
                "background work failed, starting anew",
                exc_info=None if fault == traced else exc,
                extra={"work": name, "error": fault},
            )
            traced = fault
            await asyncio.sleep(pause_s)
        else:
            return
