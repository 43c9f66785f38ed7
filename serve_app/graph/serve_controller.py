"""Serve's controller, asked without blocking the event loop.

Serve's public interface, `serve.status()`, blocks its thread and takes 15 ms; the calls of the
controller itself take 2 ms and can be awaited. They are private, so that this is the only module
that makes them; tests/unit/test_serve_controller.py guards their names and
tests/serve/test_replica_scaling.py what they return.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import ReplicaMetricReport, TimeStampedValue
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

# A replica that the controller finds again after its own restart, or that is about to leave its
# node, goes on serving.
_SERVING = frozenset({"RUNNING", "RECOVERING", "PENDING_MIGRATION"})
_STARTING = frozenset({"STARTING", "UPDATING"})


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """Replicas of the application by the name of their deployment.

    `wanted` is the controller's target. `messages` holds what Serve reports about a deployment, for
    example that a constructor fails; most have none. `has_policy`: whether the application was
    deployed with a policy of its own for the number of replicas. `nodes`: the ids of the nodes that
    running replicas are on.
    """

    running: Mapping[str, int]
    starting: Mapping[str, int]
    wanted: Mapping[str, int]
    messages: Mapping[str, str]
    has_policy: bool = False
    nodes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def in_pool(self, pool: str) -> int:
        """Return the number of replicas that draw in a pool now."""
        return self.running.get(pool_deployment(pool), 0)

    def starting_in_pool(self, pool: str) -> int:
        """Return the number of replicas of a pool that load now, or await a place."""
        return self.starting.get(pool_deployment(pool), 0)


def pool_deployment(pool: str) -> str:
    """Return the name of the deployment that draws for a pool."""
    return f"Generator-{pool}"


NO_REPLICAS = ReplicaCounts({}, {}, {}, {})


class ServeController:
    """The controller of one application."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._handle: Any = None
        # Looking up an actor blocks, and slow name servers and disks can fill the common threads.
        self._thread = ThreadPoolExecutor(1, "serve-controller")

    async def replica_counts(self) -> ReplicaCounts:
        """Return how many replicas run and start.

        The wait can be long: a call to a controller that is away is answered by its next start.

        Raises:
            RayError, ValueError: there is no controller.
        """
        details = await self._call(lambda found: found.get_serve_instance_details.remote())
        return counts_in(details, self._app_name)

    async def report(self, metrics: Mapping[str, float]) -> None:
        """Hand over what this replica's `record_autoscaling_stats` returns, ahead of its time.

        Raises:
            RayError, ValueError: there is no controller.
        """
        now = time.time()
        series = {name: [TimeStampedValue(now, value)] for name, value in metrics.items()}
        me = serve.get_replica_context().replica_id
        report = ReplicaMetricReport(replica_id=me, metrics=series, timestamp=now)
        await self._call(lambda found: found.record_autoscaling_metrics_from_replica.remote(report))

    async def _call(self, call: Callable[[Any], Any]) -> Any:
        try:
            if self._handle is None:
                loop = asyncio.get_running_loop()
                self._handle = await loop.run_in_executor(self._thread, _find_controller)
            return await call(self._handle)
        except BaseException:
            self._handle = None  # a controller that was started anew has another address
            raise


def counts_in(details: Mapping[str, Any], app_name: str) -> ReplicaCounts:
    """Return the counts of an application from the controller's description of everything."""
    application = details["applications"].get(app_name)
    if application is None:
        return NO_REPLICAS
    deployments: Mapping[str, Any] = application["deployments"]
    return ReplicaCounts(
        {name: _number(deployment, _SERVING) for name, deployment in deployments.items()},
        {name: _number(deployment, _STARTING) for name, deployment in deployments.items()},
        {name: deployment["target_num_replicas"] for name, deployment in deployments.items()},
        {name: message for name, it in deployments.items() if (message := it["message"])},
        bool((application.get("deployed_app_config") or {}).get("autoscaling_policy")),
        {name: _nodes(deployment) for name, deployment in deployments.items()},
    )


def _number(deployment: Mapping[str, Any], states: frozenset[str]) -> int:
    return sum(replica["state"] in states for replica in deployment["replicas"])


def _nodes(deployment: Mapping[str, Any]) -> frozenset[str]:
    running = (replica for replica in deployment["replicas"] if replica["state"] in _SERVING)
    # One that the controller finds again after its own restart may have none yet.
    return frozenset(node for replica in running if (node := replica.get("node_id")))


def _find_controller() -> Any:
    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
