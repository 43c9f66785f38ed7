"""Removes scratch from nodes that have lost their last Preprocessor and Finisher.

Where such a replica runs, the driver and a janitor remove scratch. Elsewhere nobody does. So the
ingress remembers which nodes had one during an attempt. When the attempt ends, a Ray task removes
its scratch from those that have none any more. What this misses, because the ingress has died too,
a task removes when it is stale: every node without such a replica is visited a few times a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve_app.config.environment import read_environment
from serve_app.config.folders import scratch_root
from serve_app.config.settings import AppArgs
from serve_app.graph.builders import build_scratch
from serve_app.graph.replicas import ReplicaCounts
from serve_app.telemetry.background import run_again

logger = logging.getLogger(__name__)

STAGES = ("Preprocessor", "Finisher")
VISIT_S = 6 * 3600.0
CLEAN_S = 60.0  # to start a process on a node and remove files there

Clean = Callable[[str, Sequence[str]], Awaitable[None]]


class LeftNodes:
    """The nodes that stages have left.

    Args:
        clean: removes the scratch of attempts from a node, and what is stale there.
        own_node: the ingress's, which has a janitor.
    """

    def __init__(self, clean: Clean, own_node: str) -> None:
        self._clean = clean
        self._own_node = own_node
        self._occupied: frozenset[str] = frozenset()
        self._seen: dict[str, set[str]] = {}  # by attempt
        self._cleaning: set[asyncio.Task[None]] = set()

    def follow(self, counts: ReplicaCounts) -> None:
        """Take in where replicas are now."""
        self._occupied = frozenset().union(*(counts.nodes.get(stage, ()) for stage in STAGES))
        for seen in self._seen.values():
            seen |= self._occupied

    def begin(self, attempt_id: str) -> None:
        """Remember from now on which nodes may get scratch of an attempt."""
        self._seen[attempt_id] = set(self._occupied)

    def release(self, attempt_id: str) -> None:
        """Begin to remove an attempt's scratch from the nodes that were left since it began."""
        seen = self._seen.get(attempt_id, set())
        for node in seen - self._occupied - {self._own_node}:
            seen.discard(node)
            # Outside the context of the request that runs the job, which ends before.
            cleaning = asyncio.create_task(
                self._try_to_clean(node, [attempt_id]), context=Context()
            )
            self._cleaning.add(cleaning)
            cleaning.add_done_callback(self._cleaning.discard)

    def end(self, attempt_id: str) -> None:
        """Forget an attempt."""
        self._seen.pop(attempt_id, None)

    def start(self, live_nodes: Callable[[], Sequence[str]]) -> None:
        """Begin to visit nodes without a stage, for as long as this process lives."""

        async def visit_again() -> None:
            while True:
                await asyncio.sleep(VISIT_S)
                await self.visit(await asyncio.to_thread(live_nodes))

        self._visiting = asyncio.create_task(run_again("left nodes", visit_again))

    async def visit(self, nodes: Sequence[str]) -> None:
        """Remove what is stale from the `nodes` without a stage, one after the other."""
        for node in nodes:
            if node not in self._occupied and node != self._own_node:
                await self._try_to_clean(node, [])

    async def _try_to_clean(self, node: str, attempts: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(CLEAN_S):
                await self._clean(node, attempts)
        except Exception as exc:  # it is lost as well, for example
            extra = {"node": node, "attempts": list(attempts), "error": type(exc).__name__}
            logger.warning("scratch of a node that was left is not removed", extra=extra)


def left_nodes(args: AppArgs) -> LeftNodes:
    """Return the nodes that stages have left, as an ingress cleans them."""
    return LeftNodes(partial(clean_by_task, args), ray.get_runtime_context().get_node_id())


async def clean_by_task(args: AppArgs, node: str, attempts: Sequence[str]) -> None:
    """Remove the scratch of attempts from a node, and what is stale there, by a task on it.

    Raises:
        RayError: the node is lost.
    """
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(clean_here)
    await task.options(scheduling_strategy=there).remote(args, attempts)


def clean_here(args: AppArgs, attempts: Sequence[str]) -> None:
    """Remove the scratch of attempts from this node, and what is stale."""
    env = read_environment()
    if not scratch_root(args, env).is_dir():
        return
    scratch = build_scratch(args, env)
    for attempt in attempts:
        scratch.release(attempt)
    scratch.sweep()


def live_node_ids() -> list[str]:
    """Return the ids of the live nodes of the cluster."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]
