"""A result is awaited without being fetched, by an event of Ray's."""

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayTaskError
from ray.serve.handle import DeploymentResponse

from musetalk_pipeline.errors import Stage
from serve_app.config.settings import DriverSettings
from serve_app.graph import result_watch
from serve_app.graph.ray_errors import as_pipeline_error
from serve_app.graph.result_watch import Locations, until_result_exists, until_result_is_lost
from serve_app.graph.stage_calls import ResultLost, StageCalls


class Reference:
    """An object's reference as Ray has it: it calls back in a thread of its own.

    `value`: what fetching it gives, or raises.
    """

    def __init__(self, value: object = None) -> None:
        self.value = value
        self.was_fetched = False
        self.callback: Callable[[object], None] | None = None
        self.asked = asyncio.Event()
        self.stopped = False

    def _on_ready(self, callback: Callable[[object], None]) -> Callable[[], None]:
        self.callback = callback
        self.asked.set()
        return self.stop

    def __await__(self) -> Generator[None, None, object]:
        self.was_fetched = True
        if isinstance(self.value, Exception):
            raise self.value
        yield
        return self.value

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


def on_node(references: list[Any]) -> dict[Any, dict[str, Any]]:
    """Say that a node holds each of these."""
    return {reference: {"node_ids": ["a"]} for reference in references}


def on_no_node(references: list[Any]) -> dict[Any, dict[str, Any]]:
    """Say that they are with their owner, as errors and small values are."""
    return {reference: {"node_ids": []} for reference in references}


async def existing(reference: Reference, locations: Locations) -> None:
    """Await the result of a call that is sent and has one."""
    response = Response()
    response.assigned.set_result(reference)
    waiting = asyncio.create_task(until_result_exists(response, locations))
    await reference.asked.wait()
    reference.come()
    async with asyncio.timeout(10):
        await waiting


def test_ray_has_what_this_uses():
    """Both are private, so a new version of Ray may lack them."""
    assert callable(DeploymentResponse._to_object_ref)
    assert callable(ray.ObjectRef._on_ready)


async def test_a_result_is_awaited_until_ray_calls_back():
    response, reference = Response(), Reference()
    waiting = asyncio.create_task(until_result_exists(response, on_node))
    response.assigned.set_result(reference)
    await reference.asked.wait()
    assert not waiting.done()
    reference.come()
    async with asyncio.timeout(10):
        await waiting


async def test_a_large_result_is_not_fetched():
    reference = Reference()
    await existing(reference, on_node)
    assert not reference.was_fetched


async def test_an_error_is_raised_and_not_passed_on():
    """Serve's router would send the call that has it as an argument again and again."""
    error = ActorUnavailableError("the node is gone", actor_id=None)
    with pytest.raises(ActorUnavailableError):
        await existing(Reference(error), on_no_node)


async def test_a_result_that_nobody_knows_any_more_is_asked_for():
    with pytest.raises(ObjectLostError):
        await existing(Reference(ObjectLostError("ref", "owner", "site")), lambda references: {})


async def test_a_small_result_exists_too():
    await existing(Reference("small"), on_no_node)


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


class Nodes:
    """Which node holds each result, as their owner knows it."""

    def __init__(self, *held: Reference) -> None:
        self.nodes: dict[Reference, list[str]] = {one: ["a"] for one in held}
        self.seen = asyncio.Event()

    def __call__(self, references: list[Any]) -> dict[Any, dict[str, Any]]:
        self.seen.set()
        return {one: {"node_ids": self.nodes[one]} for one in references if one in self.nodes}

    async def look(self) -> None:
        """Return after the next two looks."""
        for _ in range(2):
            self.seen.clear()
            async with asyncio.timeout(10):
                await self.seen.wait()


def answered(reference: Reference) -> Response:
    response = Response()
    response.assigned.set_result(reference)
    return response


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_watch, "LOOK_S", 0.001)


@pytest.mark.usefixtures("no_pause")
async def test_a_result_whose_last_node_is_gone_is_lost():
    kept, moved, small = Reference(), Reference(), Reference("small")
    nodes = Nodes(kept, moved)
    results = [answered(one) for one in (kept, moved, small)]
    waiting = asyncio.create_task(until_result_is_lost(results, nodes))
    nodes.nodes[moved] = ["a", "b"]
    await nodes.look()
    nodes.nodes[moved] = ["b"]
    await nodes.look()
    assert not waiting.done()
    nodes.nodes[moved] = []
    async with asyncio.timeout(10):
        await waiting
    assert not any(one.was_fetched for one in (kept, moved, small))


@pytest.mark.usefixtures("no_pause")
async def test_what_is_on_a_disk_is_not_lost():
    spilled = Reference()
    nodes = Nodes(spilled)

    def locations(references: list[Any]) -> dict[Any, dict[str, Any]]:
        return {one: {**where, "did_spill": True} for one, where in nodes(references).items()}

    waiting = asyncio.create_task(until_result_is_lost([answered(spilled)], locations))
    await nodes.look()
    nodes.nodes[spilled] = []
    await nodes.look()
    assert not waiting.done()
    waiting.cancel()


class Call:
    """A call that never ends by itself."""

    def __init__(self) -> None:
        self.was_cancelled = False

    def __await__(self) -> Generator[None, None, None]:
        yield from asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.was_cancelled = True


@pytest.mark.parametrize("method", ["result", "existing"])
@pytest.mark.usefixtures("no_pause")
async def test_a_call_whose_input_is_lost_ends_long_before_its_deadline(method: str):
    """Its replica waits for the input without an end, and tells nobody."""
    call, reference, nodes = Call(), Reference(), Nodes()

    async def exists(response: Any) -> None:
        await response

    async def is_lost(results: Any) -> None:
        await until_result_is_lost(results, nodes)

    nodes.nodes[reference] = ["a"]
    calls = StageCalls(DriverSettings(), exists=exists, is_lost=is_lost)
    made = getattr(calls, method)(call, 1e6, inputs=(answered(reference),))
    waiting = asyncio.create_task(made)
    await nodes.look()
    nodes.nodes[reference] = []
    async with asyncio.timeout(10):
        with pytest.raises(ResultLost):
            await waiting
    assert call.was_cancelled


def test_a_call_that_was_given_a_lost_result_may_be_made_again():
    cause = ObjectLostError("ref", "owner", "site")
    raised = RayTaskError("generate", "traceback", cause)
    error = as_pipeline_error(raised, Stage.INFERENCE)
    assert (error.retryable, error.message) == (True, "A result was lost together with its node.")
