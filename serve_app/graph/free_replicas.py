"""How a Generator call finds its replica: to one that is free, at once.

Serve looks at two replicas, chosen at random, and waits up to half a second before it looks at two
others. The scheduler sends a call only when a replica is free, but with one free replica of eight
that takes four looks on average: calls began 2 s late while the replica idled.
"""

import random

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

# Until another look, when all replicas seem to be busy: one has just become free, and the router
# learns that with the result of its call.
LOOK_AGAIN_S = 0.01


class FreeReplicaRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Sends each call to a replica without a call, as far as its caller knows.

    The only caller is the ingress, which knows the calls that it has sent. The oldest call is sent
    first.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return a free replica, or two that are asked whether they are."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else it looks without a pause
        free = self.select_available_replicas(candidate_replicas)
        if free:
            return [[random.choice(free)]]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def to_free_replicas() -> RequestRouterConfig:
    """Return the configuration of a deployment whose calls go to free replicas."""
    return RequestRouterConfig(
        request_router_class=f"{FreeReplicaRouter.__module__}.{FreeReplicaRouter.__name__}",
        initial_backoff_s=LOOK_AGAIN_S,
        backoff_multiplier=1.0,
        max_backoff_s=LOOK_AGAIN_S,
    )
