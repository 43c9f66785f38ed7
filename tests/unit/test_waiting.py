"""The tests' own waits: they end when the condition is true, and name what was awaited."""

import pytest

from tests.waiting import until, until_async


def test_a_wait_returns_the_value_of_its_condition() -> None:
    values = iter([None, [], ["found"]])
    assert until(lambda: next(values), "nothing was found") == ["found"]


def test_a_wait_that_fails_says_what_was_awaited() -> None:
    with pytest.raises(AssertionError, match=r"^the job has not ended within 0\.05 s$"):
        until(lambda: False, lambda: "the job has not ended", 0.05)


async def test_a_condition_may_be_a_coroutine() -> None:
    async def value() -> int:
        return next(values)

    values = iter([0, 0, 3])
    assert await until_async(value, "no value came") == 3
    with pytest.raises(AssertionError, match=r"^no value came within 0\.05 s$"):
        values = iter(lambda: 0, 1)
        await until_async(value, "no value came", 0.05)
