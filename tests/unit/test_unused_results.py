"""Results in reference cycles are freed while jobs run, and once after the last one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable

import pytest

from serve_app.graph.unused_results import free_unused_results
from tests.waiting import turns


class Response:
    """Holds itself, as a response of Serve does by way of the function that cancels its wait."""

    def __init__(self) -> None:
        self.cancel_wait = lambda: self


@pytest.fixture(autouse=True)
def only_collected_on_request() -> AsyncIterator[None]:
    """Keep Python from collecting by itself, and undo the freezing afterwards."""
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@contextlib.asynccontextmanager
async def freeing(is_at_work: Callable[[], bool]) -> AsyncIterator[None]:
    task = asyncio.create_task(free_unused_results(is_at_work, pause_s=0))
    await turns(3)
    try:
        yield
    finally:
        task.cancel()


async def test_a_result_is_freed_while_a_job_runs() -> None:
    async with freeing(lambda: True):
        response = weakref.ref(Response())
        await turns(10)
        assert response() is None


async def test_the_results_of_the_last_job_are_freed_too() -> None:
    at_work = True
    async with freeing(lambda: at_work):
        response = weakref.ref(Response())
        at_work = False
        await turns(10)
        assert response() is None


async def test_nothing_is_collected_while_no_job_runs() -> None:
    async with freeing(lambda: False):
        response = weakref.ref(Response())
        await turns(10)
        assert response() is not None
