"""Plain retries: how often, how long the waits are, and what is logged of them."""

import logging

import pytest

from musetalk_pipeline.retries import async_retrying, retrying


class Flaky:
    """Fails as often as it is told, then returns how often it was called."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError("https://host/file?X-Amz-Signature=s3cret")
        return self.calls


def test_a_failure_that_passes_is_tried_again(no_waits):
    assert retrying(3, 1.0)(OSError, Flaky(2)) == 3


def test_the_last_failure_is_the_callers_to_see(no_waits):
    flaky = Flaky(5)
    with pytest.raises(OSError, match="X-Amz"):
        retrying(3, 1.0)(OSError, flaky)
    assert flaky.calls == 3


def test_another_kind_of_failure_ends_it_at_once(no_waits):
    flaky = Flaky(5)
    with pytest.raises(OSError, match="X-Amz"):
        retrying(3, 1.0)(TimeoutError, flaky)
    assert flaky.calls == 1


async def test_coroutines_are_tried_again_too(no_waits):
    flaky = Flaky(2)

    async def call() -> int:
        return flaky()

    assert await async_retrying(3, 1.0)(OSError, call) == 3


def test_nothing_is_logged_of_what_an_exception_says(no_waits, caplog):
    with caplog.at_level(logging.DEBUG):
        retrying(3, 1.0)(OSError, Flaky(2))
    assert caplog.records == []
