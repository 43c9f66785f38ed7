"""Finds out which deployments no node of the cluster can take, and logs it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray._private import state

from serve_app.scaling.placement import Node, Obstacle, Place, obstacle

logger = logging.getLogger(__name__)

# An obstacle counts once it has been found twice in a row: replicas that have just ended, or nodes
# that have just come, are not in Ray's tables yet.
SETTLED = 2
EAGER_S, LAZY_S = 5.0, 30.0  # between two readings while something starts, and otherwise


class PlacementWatch:
    """What stands in the way of each deployment's replicas.

    Args:
        places: what one replica of each deployment needs.
        awaits_nodes: an autoscaler starts what is missing, so only a warning is due.
        read_nodes: reads the live nodes; it may block.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        *,
        awaits_nodes: bool = False,
        read_nodes: Callable[[], Sequence[Node]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._awaits_nodes = awaits_nodes
        self._read_nodes = read_nodes or live_nodes
        self._clock = clock
        self._found: dict[str, tuple[Obstacle, int]] = {}  # and how many times in a row
        self._read_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, "nodes")  # the common threads may all be taken

    def obstacle(self, deployment: str) -> Obstacle | None:
        """Return why no node can take a replica of a deployment; None if that is not known."""
        found, times = self._found.get(deployment, (None, 0))
        return found if times >= SETTLED else None

    def reason(self, deployment: str) -> str:
        """Return why, for people; empty if nothing stands in the way."""
        found = self.obstacle(deployment)
        if found is None:
            return ""
        return f"{found.reason}; a node is awaited" if self._awaits_nodes else found.reason

    async def look(self, starting: Mapping[str, int]) -> None:
        """Read the nodes if it is time for that; `starting` counts replicas by deployment."""
        pause_s = EAGER_S if self._found or any(starting.values()) else LAZY_S
        if self._clock() - self._read_at < pause_s:
            return
        self._read_at = self._clock()
        loop = asyncio.get_running_loop()
        nodes = await loop.run_in_executor(self._thread, self._read_nodes)
        for deployment, place in self._places.items():
            found = obstacle(place, nodes, now=bool(starting.get(deployment)))
            self._note(deployment, found)

    def _note(self, deployment: str, found: Obstacle | None) -> None:
        before, times = self._found.pop(deployment, (None, 0))
        if found is not None:
            self._found[deployment] = found, times + 1
            if times + 1 == SETTLED:
                wait = "a node is awaited" if self._awaits_nodes else found.remedy
                logger.warning("%s cannot run: %s. %s", deployment, found.reason, _sentence(wait))
        elif before is not None and times >= SETTLED:
            logger.info("%s can run: a node has room for it", deployment)


def live_nodes() -> list[Node]:
    """Return the live nodes of the cluster; a call to Ray's control store, about a millisecond."""
    free = state.available_resources_per_node()
    return [
        Node(node["Labels"], node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
