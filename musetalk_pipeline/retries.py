"""Trying again what may succeed the next time.

These are the plain retries, whose state ends with the process. What is kept on disk between tries
(webhooks, reports) has its own loop.
"""

from __future__ import annotations

from typing import TypedDict

from stamina import AsyncRetryingCaller, RetryingCaller
from stamina.instrumentation import set_on_retry_hooks

# The callers log their own failures, redacted. stamina would log the text of every exception, and
# with it the signed addresses that some contain.
set_on_retry_hooks(())


LONGEST_WAIT_S = 60.0


class _Rules(TypedDict):
    attempts: int
    timeout: None
    wait_initial: float
    wait_max: float
    wait_jitter: float


def retrying(
    attempts: int, wait_s: float, longest_wait_s: float = LONGEST_WAIT_S
) -> RetryingCaller:
    """Return what calls a function up to `attempts` times and lets its last exception through.

    The first wait is `wait_s` and doubles from then on. Up to `wait_s` of chance are added, so that
    many machines do not come back in step. `stamina.set_testing` switches the waits off.
    """
    return RetryingCaller(**_rules(attempts, wait_s, longest_wait_s))


def async_retrying(attempts: int, wait_s: float) -> AsyncRetryingCaller:
    """Return the same for a coroutine function."""
    return AsyncRetryingCaller(**_rules(attempts, wait_s, LONGEST_WAIT_S))


def _rules(attempts: int, wait_s: float, longest_wait_s: float) -> _Rules:
    return {
        "attempts": attempts,
        "timeout": None,  # deadlines are the caller's
        "wait_initial": wait_s,
        "wait_max": longest_wait_s,
        "wait_jitter": wait_s,
    }
