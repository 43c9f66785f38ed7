"""Running the steps of a pipeline at the same time, a bounded number of results ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Takes `items`, none of which is None, from their generator in a thread of its own, at most
    `depth` of them before they are asked for.

    What the generator raises comes out where its item would have. Leaving the `with` block waits
    for the step that is running and closes the generator, except after Ctrl-C, when nobody wants to
    wait.
    """

    def __init__(
        self, items: Generator[T, None, None], depth: int = 1, name: str = "ahead"
    ) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._coming = deque[Future[T | None]]()
        for _ in range(depth):
            self._ask()

    def __iter__(self) -> Generator[T, None, None]:
        while (item := self._coming.popleft().result()) is not None:
            self._ask()
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._pool.shutdown(wait=not is_interrupted, cancel_futures=True)
        if not is_interrupted:
            self._items.close()

    def _ask(self) -> None:
        self._coming.append(self._pool.submit(next, self._items, None))
