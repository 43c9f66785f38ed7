"""Waits until the result of a call exists, or is lost, without fetching it.

Results are large, and they are needed elsewhere. Serve reports a result to its caller only by
delivering it. Ray reports whether the object exists, by an event.

A call whose argument was lost with a node never begins: its replica waits for the argument without
an end, and nobody is told. But the caller owns the argument, and Ray tells owners which nodes hold
their objects, without a request. A node that Ray gives up is left out of that at once.

An error must not be passed on. If a replica was unavailable, which happens when its node is lost,
Serve's router (2.60) takes the error in an argument for one of the replica that should receive it,
and sends the call again without a pause and without an end.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ray import ObjectRef
from ray.experimental.locations import get_local_object_locations

Locations = Callable[[list[Any]], dict[Any, dict[str, Any]]]

LOOK_S = 1.0  # between two looks at where results are; one takes some microseconds


async def until_result_exists(
    response: Any, locations: Locations = get_local_object_locations
) -> None:
    """Return when the result of a Serve call exists.

    `locations`: which nodes hold objects, as their owner knows it without asking anybody.

    Raises:
        RayError: the call could not be sent, it failed, or its result was lost with a node.
    """
    sending = asyncio.ensure_future(response._to_object_ref())
    try:
        # Cancelling it would cancel the call itself, from another thread than its event loop's.
        ref = await asyncio.shield(sending)
    except asyncio.CancelledError:
        sending.add_done_callback(forget_error)
        raise
    loop = asyncio.get_running_loop()
    exists: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not exists.done():
            exists.set_result(None)

    # Ray calls back in a thread of its own, without pulling the object to this node.
    stop_waiting = ref._on_ready(lambda _: loop.call_soon_threadsafe(wake))
    try:
        await exists
    except asyncio.CancelledError:
        stop_waiting()
        raise
    if not _is_held(ref, locations):
        await ref  # an error raises here; a value that no node holds is small, below 100 kB


async def until_result_is_lost(
    results: Sequence[Any], locations: Locations = get_local_object_locations
) -> None:
    """Return when one of these results, which exist, is on no node any more.

    `results`: responses of Serve calls, or references. A value that no node holds is with its
    owner. If that is another process, Ray itself fails the calls that need the value.
    """
    refs = [one if isinstance(one, ObjectRef) else await one._to_object_ref() for one in results]
    held = [ref for ref in refs if _is_held(ref, locations)]
    while not held or all(_is_held(ref, locations) for ref in held):
        await asyncio.sleep(LOOK_S)


def _is_held(ref: Any, locations: Locations) -> bool:
    where = locations([ref]).get(ref, {})
    return bool(where.get("node_ids") or where.get("did_spill"))


def forget_error(sending: "asyncio.Future[Any]") -> None:
    """Take note of an error that nobody waits for any more."""
    if not sending.cancelled():
        sending.exception()
