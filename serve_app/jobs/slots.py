"""The slots of an ingress replica: loops that call its own handle and run jobs inside those calls.

Serve drains requests, not background tasks. A job therefore runs inside an accepted request, which
a draining replica waits for. Such a replica gets no new requests, so it starts no new job either.

The loops must survive everything, because a worker without slots looks healthy and does nothing. A
call that is never answered, or that was not cancelled here, is therefore made again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlotTiming:
    """Waits in seconds.

    A call without a job ends after `call_s`, so that draining is quick. It is woken when there may
    be a job, and polls for those of other processes every `poll_s`. A call that is neither answered
    nor running here for `lost_s` is made again, and so is one that failed, after `failed_pause_s`.
    """

    call_s: float = 5.0
    poll_s: float = 1.0
    lost_s: float = 10.0
    failed_pause_s: float = 1.0


class Slots:
    """The slots of one replica.

    Args:
        call: makes a request for `run_next(slot)` to this deployment. Serve chooses the replica.
        run_job: runs a job for that slot if there is one; False if there was none.
    """

    def __init__(
        self,
        call: Callable[[int], Awaitable[None]],
        run_job: Callable[[int], Awaitable[bool]],
        timing: SlotTiming = SlotTiming(),
    ) -> None:
        self._call = call
        self._run_job = run_job
        self._timing = timing
        self._busy: set[int] = set()  # slots with a call that is running here
        self._idle = asyncio.Event()  # no slot is busy
        self._idle.set()
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()  # a new one after each `wake`
        self._ended_at: dict[int, float] = {}  # when a call for that slot last ended here

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started here."""
        return self._stopping.is_set()

    @property
    def woken(self) -> asyncio.Event:
        """An event that the next `wake` sets. Get it before a search that it may interrupt."""
        return self._woken

    def wake(self) -> None:
        """Let the calls that wait look for a job now."""
        self._woken.set()
        self._woken = asyncio.Event()

    async def stop(self) -> None:
        """Start no further job, and return when the running calls have ended."""
        self._stopping.set()
        self.wake()
        await self._idle.wait()

    async def keep(self, slot: int) -> None:
        """Make calls for a slot until `stop`."""
        while not self.is_stopping:
            # In a task of its own, so that a cancellation of the call does not cancel this loop.
            call = asyncio.create_task(self._call_safely(slot))
            try:
                await self._until_answered_or_lost(slot, call)
            finally:
                call.cancel()

    async def run_next(self, slot: int) -> None:
        """Run one job if one arrives within a few seconds. Call this inside a request."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timing.call_s
        if slot in self._busy:
            # A draining replica calls for slots of the same numbers, and Serve sends its calls
            # here.
            await _until(self._stopping, self._timing.call_s)
            return
        self._set_busy(slot)
        try:
            while loop.time() < until and not self.is_stopping:
                woken = self._woken  # before the search, so that nothing is missed during it
                if await self._run_job(slot):
                    self.wake()  # there is room for another job now
                    return
                await _until(woken, self._timing.poll_s)
        finally:
            self._set_free(slot)
            self._ended_at[slot] = loop.time()

    def _set_busy(self, slot: int) -> None:
        self._busy.add(slot)
        self._idle.clear()

    def _set_free(self, slot: int) -> None:
        self._busy.discard(slot)
        if not self._busy:
            self._idle.set()

    async def _call_safely(self, slot: int) -> None:
        try:
            await self._call(slot)
        except Exception:
            logger.exception("slot failed", extra={"slot": slot})
            await asyncio.sleep(self._timing.failed_pause_s)

    async def _until_answered_or_lost(self, slot: int, call: "asyncio.Task[None]") -> None:
        loop = asyncio.get_running_loop()
        called_at = loop.time()
        while True:
            done, _ = await asyncio.wait({call}, timeout=self._timing.call_s)
            if done:
                if call.cancelled():
                    logger.error("slot's call was cancelled by Ray", extra={"slot": slot})
                    await asyncio.sleep(self._timing.failed_pause_s)
                return
            ended_at = self._ended_at.get(slot, float("-inf"))
            active_at = max(called_at, ended_at)
            if slot not in self._busy and loop.time() - active_at > self._timing.lost_s:
                ran = ended_at > called_at  # then only its answer was lost
                logger.error(
                    "slot's call was lost, calling again", extra={"slot": slot, "ran": ran}
                )
                return


async def _until(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
