"""A background task is started again after a failure, and not after its end."""

import asyncio
import logging

from serve_app.telemetry.background import run_again
from tests.waiting import turns


async def test_work_that_fails_is_started_anew_and_said(caplog):
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise OSError("No space left on device")

    with caplog.at_level(logging.ERROR):
        await run_again("webhooks", work, pause_s=0.0)
    assert runs == 3
    assert [record.task for record in caplog.records] == ["webhooks", "webhooks"]


async def test_cancelling_ends_it():
    task = asyncio.create_task(run_again("webhooks", asyncio.Event().wait))
    await turns()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_a_fault_that_lasts_is_traced_once(caplog):
    faults = ["full", "full", "full", "locked"]

    async def work() -> None:
        if faults:
            raise OSError(faults.pop(0))

    await run_again("test", work, pause_s=0.0)
    traced = [record.exc_info is not None for record in caplog.records]
    assert traced == [True, False, False, True]
    assert caplog.records[1].error == "OSError: full"
