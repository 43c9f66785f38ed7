"""The deployments that a driver calls: two CPU stages and a Generator pool per architecture."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Pool:
    """The Generator deployment of one GPU architecture, and how busy it is."""

    name: str
    handle: Any
    capacity: int  # calls that its replicas work on or prefetch
    usd_per_frame: float
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """Handles of the deployments behind the ingress."""

    preprocessor: Any
    pools: tuple[Pool, ...]
    finisher: Any

    def pick_pool(self) -> Pool:
        """Return the cheapest pool with free capacity, else the one least loaded."""
        free = [pool for pool in self.pools if pool.in_flight < pool.capacity]
        if free:
            return min(free, key=lambda pool: pool.usd_per_frame)
        return min(self.pools, key=lambda pool: pool.in_flight / max(1, pool.capacity))
