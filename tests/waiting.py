"""Waiting for something that nothing announces: a process, a file, another thread.

Where a test can await an event, a future or a condition variable, it does that instead.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 20.0
PAUSE_S = 0.02  # before the condition is read again


def until(
    condition: Callable[[], T | None],
    what: str | Callable[[], str],
    deadline_s: float = DEADLINE_S,
    *,
    pause_s: float = PAUSE_S,
) -> T:
    """Return the condition's value as soon as it is true.

    `what` completes the sentence "... within 20 s", for example "the job has not ended". A function
    is called only when the wait has failed, for a message that shows a log.

    Raises:
        AssertionError: The condition was still false at the deadline.
    """
    ends_at = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < ends_at, _sentence(what, deadline_s)
        time.sleep(pause_s)
    return value


async def until_async(
    condition: Callable[[], T | Awaitable[T | None] | None],
    what: str | Callable[[], str],
    deadline_s: float = DEADLINE_S,
) -> T:
    """Do as `until` does and leave the event loop free. The condition may be a coroutine function.

    Raises:
        AssertionError: The condition was still false at the deadline.
    """
    ends_at = time.monotonic() + deadline_s
    while True:
        found = condition()
        value: T | None = (await found) if inspect.isawaitable(found) else found
        if value:
            return value
        assert time.monotonic() < ends_at, _sentence(what, deadline_s)
        await asyncio.sleep(PAUSE_S)


async def turns(rounds: int = 1) -> None:
    """Let the event loop do what is due, so many times."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def _sentence(what: str | Callable[[], str], deadline_s: float) -> str:
    return f"{what if isinstance(what, str) else what()} within {deadline_s:g} s"
