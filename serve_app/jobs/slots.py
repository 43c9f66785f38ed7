"""The slots of an ingress replica: loops that call its own handle, and do jobs inside those calls.

Serve drains requests, not background tasks. A job therefore runs inside an accepted request, which
a draining replica waits for; it is given no new one, so it takes no new job either.

The loops must outlive everything: a slot that stops is a worker that looks well and does nothing.
An answer that never comes, or a call that was cancelled by nobody here, is therefore made again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

CALL_S = 5.0  # a call ends after that without work, so that draining is quick
LOOK_S = 0.1  # how often a call looks for work
LOST_S = 10.0  # a call that is neither answered nor at work here for that long is made again
FAILED_PAUSE_S = 1.0


class Slots:
    """The slots of one replica.

    Args:
        call: makes a request for `work(slot)` to this deployment; Serve chooses the replica.
        do_next: does a job for that slot if there is one; False if there was none.
    """

    def __init__(
        self,
        call: Callable[[int], Awaitable[None]],
        do_next: Callable[[int], Awaitable[bool]],
        *,
        call_s: float = CALL_S,
        lost_s: float = LOST_S,
    ) -> None:
        self._call = call
        self._do_next = do_next
        self._call_s = call_s
        self._lost_s = lost_s
        self._at_work: set[int] = set()
        self._stopping = asyncio.Event()
        self._seen: dict[int, float] = {}  # when a call for that slot was last at work here

    @property
    def is_stopping(self) -> bool:
        """Whether no job is begun here any more."""
        return self._stopping.is_set()

    async def stop(self) -> None:
        """Begin no job any more, and return when the calls that do one have ended."""
        self._stopping.set()
        while self._at_work:
            await asyncio.sleep(LOOK_S)

    async def keep(self, slot: int) -> None:
        """Call until `stop`."""
        while not self.is_stopping:
            # In a task of its own: a cancellation of the call is not one of this loop.
            call = asyncio.create_task(self._called(slot))
            try:
                await self._answered_or_lost(slot, call)
            finally:
                call.cancel()

    async def work(self, slot: int) -> None:
        """Do one job if one comes within a few seconds. To be called inside a request."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._call_s
        if slot in self._at_work:
            # Another replica, draining, has its slots' calls sent here: this one is taken.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._call_s)
            return
        self._at_work.add(slot)
        try:
            while loop.time() < until and not self.is_stopping:
                if await self._do_next(slot):
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            self._at_work.discard(slot)
            self._seen[slot] = loop.time()

    async def _called(self, slot: int) -> None:
        try:
            await self._call(slot)
        except Exception:
            logger.exception("slot failed", extra={"slot": slot})
            await asyncio.sleep(FAILED_PAUSE_S)

    async def _answered_or_lost(self, slot: int, call: "asyncio.Task[None]") -> None:
        loop = asyncio.get_running_loop()
        called_at = loop.time()
        while True:
            done, _ = await asyncio.wait({call}, timeout=self._call_s)
            if done:
                if call.cancelled():
                    logger.error("slot's call was cancelled by Ray", extra={"slot": slot})
                    await asyncio.sleep(FAILED_PAUSE_S)
                return
            seen = max(called_at, self._seen.get(slot, called_at))
            if slot not in self._at_work and loop.time() - seen > self._lost_s:
                ran = self._seen.get(slot, 0.0) > called_at  # then only its answer was lost
                logger.error(
                    "slot's call was lost, calling again", extra={"slot": slot, "ran": ran}
                )
                return
