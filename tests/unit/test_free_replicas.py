"""A Generator call goes to a replica that is free, however few of them are."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve._private.request_router.request_router import RequestRouter
from ray.serve.request_router import PendingRequest

from serve_app.graph.free_replicas import FreeReplicaRouter, to_free_replicas


@dataclass(frozen=True)
class Replica:
    """What the router looks at."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 1


def replicas(count: int) -> list[Replica]:
    pool = DeploymentID("Generator-gpu", "lipsync")
    return [Replica(ReplicaID(str(number), pool)) for number in range(count)]


def router(calls: Sequence[tuple[Replica, int]]) -> Any:
    """Return a router that knows these numbers of calls; Serve would give it more."""
    made = cast(Any, FreeReplicaRouter.__new__(FreeReplicaRouter))
    made._replica_queue_len_cache = ReplicaQueueLengthCache()
    for replica, count in calls:
        made._replica_queue_len_cache.update(replica.replica_id, count)
    return made


def pending() -> Any:
    return SimpleNamespace(routing_context=SimpleNamespace(should_backoff=False))


async def test_the_only_free_replica_of_many_is_found_at_once():
    all_of_them = replicas(16)
    for free in all_of_them:
        found = router([(one, int(one is not free)) for one in all_of_them])
        assert await found.choose_replicas(all_of_them, pending()) == [[free]]


async def test_a_replica_that_has_had_no_call_is_free():
    old, new = replicas(2)
    assert await router([(old, 1)]).choose_replicas([old, new], pending()) == [[new]]


@pytest.mark.parametrize("count", [1, 2, 9])
async def test_busy_replicas_are_asked_and_then_the_router_pauses(count: int):
    all_of_them, request = replicas(count), pending()
    [asked] = await router([(one, 1) for one in all_of_them]).choose_replicas(all_of_them, request)
    assert len(set(asked)) == min(2, count) and set(asked) <= set(all_of_them)
    assert request.routing_context.should_backoff


def test_serve_finds_the_router_by_its_name():
    assert to_free_replicas().get_request_router_class() is FreeReplicaRouter
    assert issubclass(FreeReplicaRouter, RequestRouter)
    assert "routing_context" in PendingRequest.__dataclass_fields__  # which this router sets
