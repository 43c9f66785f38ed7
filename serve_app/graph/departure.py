"""Whether Serve is stopping this replica, and whether the whole application goes with it.

A stopping replica gets no more requests, and Serve waits for those that it has. If only the
deployments are replaced, calls reach their new replicas, and a running job can end. If the
application is deleted, the idle replicas of every stage are gone at once, and calls wait for ever.
"""

import asyncio
from typing import Any, Protocol

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

STATUS_S = 5.0  # for Serve's controller to answer


class Departure(Protocol):
    """What is known about the end of this replica."""

    def has_begun(self) -> bool:
        """Return whether this replica is being stopped."""
        ...

    async def is_deletion(self) -> bool:
        """Return whether the application is being deleted, and not deployed again."""
        ...


class ReplicaDeparture:
    """The end of the replica that this process is, as Serve has it."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name

    def has_begun(self) -> bool:
        """Return whether Serve has begun to stop this replica.

        Serve tells the replica object alone, which no public interface leads to.
        """
        actors: dict[Any, Any] = ray._private.worker.global_worker.actors
        return any(actor._replica_impl._shutting_down for actor in actors.values())

    async def is_deletion(self) -> bool:
        """Ask Serve's controller. A controller that does not answer is gone with everything."""
        try:
            async with asyncio.timeout(STATUS_S):
                status = await asyncio.to_thread(serve.status)
        except (TimeoutError, RayError, RayServeException):
            return True
        application = status.applications.get(self._app_name)
        return application is None or application.status.value == "DELETING"
