"""The deployments that a driver calls: two CPU stages and a Generator pool per architecture."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pool:
    """The Generator deployment of one GPU architecture."""

    name: str
    handle: Any


@dataclass(frozen=True, slots=True)
class Graph:
    """Handles of the deployments behind the ingress."""

    preprocessor: Any
    pools: tuple[Pool, ...]
    finisher: Any

    def generator(self, pool: str) -> Any:
        """Return the handle of a pool's deployment."""
        return next(one.handle for one in self.pools if one.name == pool)
