"""A result is awaited without being fetched, by an event of Ray's."""

import asyncio
import threading
from collections.abc import Callable

import pytest
import ray
from ray.serve.handle import DeploymentResponse

from serve_app.graph.result_watch import until_result_exists


class Reference:
    """An object's reference as Ray has it: it calls back in a thread of its own."""

    def __init__(self) -> None:
        self.callback: Callable[[object], None] | None = None
        self.asked = asyncio.Event()
        self.stopped = False

    def _on_ready(self, callback: Callable[[object], None]) -> Callable[[], None]:
        self.callback = callback
        self.asked.set()
        return self.stop

    def stop(self) -> None:
        self.stopped = True

    def come(self) -> None:
        assert self.callback is not None
        thread = threading.Thread(target=self.callback, args=(None,))
        thread.start()
        thread.join()


class Response:
    """A call that is sent when `assigned` has a result."""

    def __init__(self) -> None:
        self.assigned: asyncio.Future[Reference] = asyncio.get_running_loop().create_future()

    async def _to_object_ref(self) -> Reference:
        return await self.assigned


def test_ray_has_what_this_uses():
    """Both are private, so a new version of Ray may lack them."""
    assert callable(DeploymentResponse._to_object_ref)
    assert callable(ray.ObjectRef._on_ready)


async def test_a_result_is_awaited_until_ray_calls_back():
    response, reference = Response(), Reference()
    waiting = asyncio.create_task(until_result_exists(response))
    response.assigned.set_result(reference)
    await reference.asked.wait()
    assert not waiting.done()
    reference.come()
    async with asyncio.timeout(10):
        await waiting


async def test_a_call_that_cannot_be_sent_says_so():
    response = Response()
    response.assigned.set_exception(RuntimeError("no replica"))
    with pytest.raises(RuntimeError, match="no replica"):
        await until_result_exists(response)


async def test_who_waits_no_more_does_not_cancel_the_sending():
    """Ray would cancel it from another thread than that of its event loop."""
    response = Response()
    waiting = asyncio.create_task(until_result_exists(response))
    await asyncio.wait({waiting}, timeout=0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not response.assigned.cancelled()
    response.assigned.set_exception(RuntimeError("nobody asks any more"))


async def test_who_waits_no_more_is_not_called_back():
    response, reference = Response(), Reference()
    waiting = asyncio.create_task(until_result_exists(response))
    response.assigned.set_result(reference)
    await reference.asked.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert reference.stopped
    reference.come()  # was on its way
