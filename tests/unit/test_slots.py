"""Slots go on whatever becomes of their calls."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from serve_app.jobs.slots import Slots, SlotTiming

QUICK = SlotTiming(call_s=0.05, poll_s=0.01, lost_s=0.2, failed_pause_s=0.01)


class Site:
    """A replica with one slot.

    `trouble` happens before the first call. Jobs end when `go_on` is set.
    """

    def __init__(
        self,
        trouble: Callable[[], Awaitable[None]] | None = None,
        waiting: int = 0,
        timing: SlotTiming = QUICK,
    ) -> None:
        self.slots = Slots(self.call, self.run_job, timing)
        self.trouble = trouble
        self.waiting, self.at_once, self.most_at_once = waiting, 0, 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.changed = asyncio.Condition()
        self.calls, self.done = 0, 0

    async def call(self, slot: int) -> None:
        await self.change(calls=1)
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            await trouble()
        await self.slots.run_next(slot)

    async def run_job(self, slot: int) -> bool:
        if not self.waiting:
            return False
        await self.change(waiting=-1, at_once=1)
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.go_on.wait()
        await self.change(at_once=-1, done=1)
        return True

    async def change(self, **steps: int) -> None:
        async with self.changed:
            for name, step in steps.items():
                setattr(self, name, getattr(self, name) + step)
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def run_until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.create_task(self.slots.keep(0))
        try:
            await self.until(condition)
        finally:
            loop.cancel()
            await asyncio.wait({loop})


async def never() -> None:
    await asyncio.Event().wait()


async def cancelled_by_ray() -> None:
    raise asyncio.CancelledError


async def broken() -> None:
    raise RuntimeError("no replica")


@pytest.mark.parametrize("trouble", [never, cancelled_by_ray, broken])
async def test_a_call_that_is_lost_cancelled_or_broken_is_made_again(trouble):
    site = Site(trouble, waiting=3)
    await site.run_until(lambda: site.done == 3)
    assert site.calls >= 4
    assert site.most_at_once == 1


async def test_a_call_that_works_is_not_lost_however_long_it_takes():
    site = Site(waiting=1)
    site.go_on.clear()
    calls: list[int] = []

    def end_the_job() -> None:
        calls.append(site.calls)  # the next call may follow at once
        site.go_on.set()

    asyncio.get_running_loop().call_later(3 * QUICK.lost_s, end_the_job)
    await site.run_until(lambda: site.done == 1)
    assert calls == [1]


async def test_a_slot_does_one_job_at_a_time_whoever_calls():
    site = Site(waiting=2)
    site.go_on.clear()
    first = asyncio.create_task(site.slots.run_next(0))
    await site.until(lambda: site.at_once == 1)
    await site.slots.run_next(0)  # a call of another replica ends without a job
    assert (site.most_at_once, site.waiting) == (1, 1)
    site.go_on.set()
    await first


async def test_a_call_without_work_ends_soon():
    async with asyncio.timeout(5):  # is the check
        await Site().slots.run_next(0)


async def test_a_stop_waits_for_the_running_job_and_begins_no_other():
    """Mend 2.8: a stop in the middle of a job finishes it."""
    site = Site(waiting=2)
    site.go_on.clear()
    keeping = asyncio.create_task(site.slots.keep(0))
    await site.until(lambda: site.at_once == 1)
    stopping = asyncio.create_task(site.slots.stop())
    await asyncio.wait({stopping}, timeout=0)
    assert (site.slots.is_stopping, stopping.done()) == (True, False)
    site.go_on.set()
    async with asyncio.timeout(10):
        await stopping
        assert (site.done, site.waiting) == (1, 1)
        await keeping
    assert (site.done, site.waiting) == (1, 1)


async def test_a_stop_of_an_idle_slot_does_not_wait_for_its_call():
    """Mend 2.8: an idle worker took five seconds for its slots' calls alone."""
    site = Site(timing=replace(QUICK, call_s=1e6))
    keeping = asyncio.create_task(site.slots.keep(0))
    await site.until(lambda: site.calls == 1)
    async with asyncio.timeout(10):
        await site.slots.stop()
        await keeping


async def test_a_slot_that_waits_is_woken_by_a_job():
    """Polling is for the jobs of other processes; a job of this one starts at once."""
    site = Site(timing=replace(QUICK, call_s=1e6, poll_s=1e6))
    call = asyncio.create_task(site.slots.run_next(0))
    await asyncio.wait({call}, timeout=0)
    await site.change(waiting=1)
    site.slots.wake()
    async with asyncio.timeout(10):
        await call
    assert site.done == 1


async def test_a_job_that_comes_while_a_slot_looks_is_not_missed():
    site = Site(timing=replace(QUICK, call_s=1e6, poll_s=1e6))

    async def look(slot: int) -> bool:
        found = site.waiting > 0
        if not found and not site.calls:
            site.calls, site.waiting = 1, 1  # after it has looked, and before it waits
            site.slots.wake()
        return found

    site.slots = Slots(site.call, look, replace(QUICK, call_s=1e6, poll_s=1e6))
    async with asyncio.timeout(10):
        await site.slots.run_next(0)
    assert site.calls == 1
