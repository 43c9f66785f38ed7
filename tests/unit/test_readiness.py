"""Readiness is answered in time, whatever has become of Serve's controller."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from serve_app.graph.pools import Graph, Pool
from serve_app.graph.readiness import Readiness, ReadinessTimes
from serve_app.graph.transfers import Description
from tests.threads import threads_taken

ABOUT = Description("warp", "1", "mesh", "cpu", "cpu", 1)


class Describing:
    """A Generator's handle."""

    @property
    def describe(self):
        async def remote() -> Description:
            return ABOUT

        return SimpleNamespace(remote=remote)


SHORT = ReadinessTimes(ready_s=0.0, unready_s=0.0, call_timeout_s=0.05)
ALWAYS_FRESH = ReadinessTimes(ready_s=0.0, unready_s=0.0)
STAGES = ("Preprocessor", "Finisher", "Generator-cpu")


def readiness_of(
    controller: Callable[[], Any],
    *,
    generator: Any = None,
    times: ReadinessTimes = ALWAYS_FRESH,
) -> Readiness:
    """Return the readiness of an application whose controller answers with `controller()`."""
    pool = Pool("cpu", generator or Describing(), capacity=1, usd_per_frame=0.0)
    graph = Graph(None, (pool,), None)
    return Readiness(graph, "lipsync", times=times, serve_status=controller)


def status(*names: str):
    deployments = {name: SimpleNamespace(replica_states={"RUNNING": 1}) for name in names}
    return SimpleNamespace(applications={"lipsync": SimpleNamespace(deployments=deployments)})


def all_running():
    return status(*STAGES)


async def test_every_stage_has_to_run():
    running: list[str] = []
    readiness = readiness_of(lambda: status(*running))
    for missing in STAGES:
        running[:] = [name for name in STAGES if name != missing]
        assert not await readiness.is_ready()
    running[:] = STAGES
    assert await readiness.is_ready()
    assert readiness.facts()["engine"] == "warp"


async def test_a_controller_that_hangs_is_asked_by_one_thread_only():
    answer, asked = threading.Event(), 0

    def hangs():
        nonlocal asked
        asked += 1
        assert answer.wait(30)
        return all_running()

    readiness = readiness_of(hangs, times=SHORT)
    for _ in range(5):
        assert not await readiness.is_ready()
    assert asked == 1
    answer.set()
    async with asyncio.timeout(30):
        while not await readiness.is_ready():  # each waits for the thread, at most SHORT's timeout
            pass


async def test_threads_that_are_all_taken_do_not_make_a_worker_unready():
    """Names that do not resolve and disks that stall fill the threads that all others share."""
    with threads_taken():
        assert await asyncio.wait_for(readiness_of(all_running).is_ready(), 5.0)


async def test_a_controller_that_is_away_is_not_ready():
    def away():
        raise RuntimeError("The controller is not running.")

    assert not await readiness_of(away).is_ready()


async def test_a_client_that_goes_away_takes_no_call_with_it():
    """Ray cancels what runs in the context of a request whose client has left."""
    request: ContextVar[str] = ContextVar("request", default="none")
    asked, answered, seen = asyncio.Event(), asyncio.Event(), []

    class Slow:
        @property
        def describe(self):
            async def remote() -> Description:
                seen.append(request.get())
                asked.set()
                await answered.wait()
                return ABOUT

            return SimpleNamespace(remote=remote)

    readiness = readiness_of(all_running, generator=Slow())

    async def client() -> None:
        request.set("a client's")
        await readiness.is_ready()

    leaving = asyncio.create_task(client())
    await asyncio.wait_for(asked.wait(), 10)
    leaving.cancel()
    asyncio.get_running_loop().call_soon(answered.set)
    assert await readiness.is_ready()
    assert seen == ["none"]


async def test_a_call_that_ray_cancels_is_not_ready_and_asked_again():
    answers = [asyncio.CancelledError(), ABOUT]

    class Cancelled:
        @property
        def describe(self):
            async def remote() -> Description:
                answer = answers.pop(0)
                if isinstance(answer, BaseException):
                    raise answer
                return answer

            return SimpleNamespace(remote=remote)

    readiness = readiness_of(all_running, generator=Cancelled())
    assert not await readiness.is_ready()
    assert await readiness.is_ready()
