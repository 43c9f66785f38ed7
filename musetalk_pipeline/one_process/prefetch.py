"""Steps of a pipeline that run at the same time, a bounded number of results ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Runs a generator in a thread of its own, at most `depth` items ahead of whoever iterates.

    No item may be None. What the generator raises is raised in place of its item. Leaving the
    `with` block waits for the step that is running and closes the generator, except after Ctrl-C,
    when the user does not want to wait.
    """

    def __init__(
        self, items: Generator[T, None, None], depth: int = 1, name: str = "prefetch"
    ) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._pending = deque[Future[T | None]]()
        for _ in range(depth):
            self._submit_next()

    def __iter__(self) -> Generator[T, None, None]:
        while (item := self._pending.popleft().result()) is not None:
            self._submit_next()
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

    def _submit_next(self) -> None:
        self._pending.append(self._pool.submit(next, self._items, None))
