"""Slots go on whatever becomes of their calls."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve_app.jobs import slots as slots_module
from serve_app.jobs.slots import Slots


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(slots_module, "LOOK_S", 0.01)
    monkeypatch.setattr(slots_module, "FAILED_PAUSE_S", 0.01)


class Site:
    """A replica with one slot. `trouble` comes before the call that is made then."""

    def __init__(self, trouble: Callable[[], Awaitable[None]] | None = None) -> None:
        self.slots = Slots(self.call, self.do_next, call_s=0.05, lost_s=0.2)
        self.trouble = trouble
        self.waiting, self.calls, self.at_once, self.most_at_once, self.done = 0, 0, 0, 0, 0
        self.job_s = 0.02

    async def call(self, slot: int) -> None:
        self.calls += 1
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            await trouble()
        await self.slots.work(slot)

    async def do_next(self, slot: int) -> bool:
        if not self.waiting:
            return False
        self.waiting -= 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.job_s)
        self.at_once -= 1
        self.done += 1
        return True

    async def run_until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.create_task(self.slots.keep(0))
        try:
            async with asyncio.timeout(10):
                while not condition():
                    await asyncio.sleep(0.01)
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
    site = Site(trouble)
    site.waiting = 3
    await site.run_until(lambda: site.done == 3)
    assert site.calls >= 4
    assert site.most_at_once == 1


async def test_a_call_that_works_is_not_lost_however_long_it_takes():
    site = Site()
    site.waiting, site.job_s = 1, 0.6
    await site.run_until(lambda: site.done == 1)


async def test_a_slot_does_one_job_at_a_time_whoever_calls():
    site = Site()
    site.waiting, site.job_s = 2, 0.1
    await asyncio.gather(site.slots.work(0), site.slots.work(0))
    assert site.most_at_once == 1


async def test_a_call_without_work_ends_soon():
    async with asyncio.timeout(5):  # is the check
        await Site().slots.work(0)


async def test_a_stop_waits_for_the_running_job_and_begins_no_other():
    """Mend 2.8: a stop in the middle of a job finishes it."""
    site = Site()
    site.waiting, site.job_s = 2, 0.2
    keeping = asyncio.create_task(site.slots.keep(0))
    async with asyncio.timeout(10):
        while not site.at_once:
            await asyncio.sleep(0.01)
        await site.slots.stop()
        assert (site.done, site.waiting) == (1, 1)
        await keeping
    assert (site.done, site.waiting) == (1, 1)


async def test_a_stop_of_an_idle_slot_does_not_wait_for_its_call():
    """Mend 2.8: an idle worker took five seconds for its slots' calls alone."""
    site = Site()
    site.slots = Slots(site.call, site.do_next, call_s=1e6)
    keeping = asyncio.create_task(site.slots.keep(0))
    async with asyncio.timeout(10):
        while not site.calls:
            await asyncio.sleep(0.01)
        await site.slots.stop()
        await keeping
