"""Steps in threads of their own: bounded, in order, and gone afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from musetalk_pipeline.one_process.prefetch import Prefetch


def count(n: int, taken: list[int]) -> Iterator[int]:
    for i in range(n):
        taken.append(i)
        yield i


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_everything_comes_in_order():
    with Prefetch(count(20, []), depth=3) as items:
        assert list(items) == list(range(20))
    assert not threads()


def test_no_more_than_the_depth_is_taken_ahead():
    taken: list[int] = []
    with Prefetch(count(100, taken), depth=2) as items:
        first = iter(items)
        next(first)
        items._pool.submit(int).result()  # the thread has done all that it was asked for
        assert len(taken) <= 3
    assert not threads()


def test_what_the_iterator_raises_comes_out_in_its_place():
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("the second one")

    seen = []
    with pytest.raises(LookupError, match="second"), Prefetch(broken()) as items:
        for item in items:
            seen.append(item)
    assert seen == [1]
    assert not threads()


def test_leaving_early_stops_the_steps_behind():
    taken: list[int] = []
    with Prefetch(count(1000, taken)) as first, Prefetch(iter(first)) as second:
        next(iter(second))
    assert len(taken) < 10
    assert not threads()
