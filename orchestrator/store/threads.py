"""How parts of a service call the store, whose methods block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Run(Protocol):
    """Calls something that blocks, in a thread."""

    async def __call__(self, act: Callable[..., T], /, *args: Any) -> T:
        """Return what it returns."""
        ...
