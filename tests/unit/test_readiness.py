"""Readiness follows the running replicas, and is answered whatever becomes of the controller."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from serve_app.graph.pools import Graph, Pool
from serve_app.graph.readiness import Readiness, ReadinessTimes
from serve_app.graph.replicas import ReplicaCounts, ReplicaWatch
from serve_app.graph.transfers import Description
from tests.threads import threads_taken

ABOUT = Description("warp", "1", "mesh", "cuda:0", "RTX-4090-24GB", 16)
CONFIGURED = Description("warp", "1", "mesh", "cuda:0", "ada", 1)
STAGES = ("Preprocessor", "Finisher", "Generator-cpu")


class Stage:
    """A stage's handle; what describes it is `answer`."""

    def __init__(self, answer: Callable[[], Awaitable[Description]]) -> None:
        self.describe = SimpleNamespace(remote=answer)
        self.preflight = SimpleNamespace(remote=self._preflight)

    async def _preflight(self) -> dict[str, str]:
        return {"av": "ok"}


async def about() -> Description:
    return ABOUT


def counts(*names: str, **numbers: int) -> ReplicaCounts:
    return ReplicaCounts(dict.fromkeys(names, 1) | numbers, {}, {}, {})


def readiness_of(
    controller: Callable[[], ReplicaCounts],
    *,
    answer: Callable[[], Awaitable[Description]] = about,
    startable: tuple[str, ...] = (),
    first_answer_s: float = 10.0,
) -> Readiness:
    """Return the readiness of an application whose controller answers with `controller()`."""

    async def ask() -> ReplicaCounts:
        return controller()

    stage = Stage(answer)
    pools = (Pool("cpu", stage),)
    graph = Graph(stage, pools, stage)
    return Readiness(
        graph,
        ReplicaWatch(ask),
        CONFIGURED,
        can_start=lambda pool, counts: pool in startable,
        times=ReadinessTimes(ready_s=0.0, unready_s=0.0, first_answer_s=first_answer_s),
    )


async def described(readiness: Readiness) -> None:
    """Wait until a pool has answered."""
    async with asyncio.timeout(10):
        while readiness.description() != ABOUT:
            await asyncio.sleep(0)


def all_running() -> ReplicaCounts:
    return counts(*STAGES)


async def test_every_stage_has_to_run():
    running: list[str] = []
    readiness = readiness_of(lambda: counts(*running))
    for missing in STAGES:
        running[:] = [name for name in STAGES if name != missing]
        assert not await readiness.is_ready()
    running[:] = STAGES
    assert await readiness.is_ready()
    assert readiness.facts()["gpu_class"] == "RTX-4090-24GB"


async def test_one_replica_of_each_stage_is_enough():
    numbers = {"Preprocessor": 4, "Finisher": 2, "Generator-cpu": 8}
    readiness = readiness_of(lambda: counts(**numbers))
    assert await readiness.is_ready()
    for stage in STAGES:
        numbers[stage] = 1
        assert await readiness.is_ready()


async def test_a_pool_that_starts_when_work_waits_is_enough():
    """Else nothing starts it: a job begins only where this is ready."""
    running = ["Preprocessor", "Finisher"]
    readiness = readiness_of(lambda: counts(*running), startable=("cpu",))
    assert await readiness.is_ready()
    assert (await readiness.preflight())["generator-cpu/replica"].startswith("ok, but ")
    running.remove("Finisher")
    assert not await readiness.is_ready()


async def test_the_configuration_speaks_for_an_engine_until_one_has_run():
    running = ["Preprocessor", "Finisher"]
    readiness = readiness_of(lambda: counts(*running), startable=("cpu",))
    assert await readiness.is_ready()
    assert readiness.description() == CONFIGURED
    assert "gpu_class" not in readiness.facts() and readiness.facts()["engine"] == "warp"
    running.append("Generator-cpu")
    assert await readiness.is_ready()
    await described(readiness)
    running.remove("Generator-cpu")
    assert await readiness.is_ready()
    assert readiness.facts()["gpu_class"] == "RTX-4090-24GB"


async def test_an_engine_that_is_busy_delays_readiness_only_for_a_moment_and_only_once():
    """After a restart of the ingress, a replica may still draw for the one before it."""
    answered = asyncio.Event()

    async def busy() -> Description:
        await answered.wait()
        return ABOUT

    readiness = readiness_of(all_running, answer=busy, first_answer_s=0.01)
    assert await asyncio.wait_for(readiness.is_ready(), 5.0)
    assert readiness.description() == CONFIGURED
    assert await asyncio.wait_for(readiness.is_ready(), 5.0)
    answered.set()
    await described(readiness)


async def test_threads_that_are_all_taken_do_not_make_a_worker_unready():
    """Names that do not resolve and disks that stall fill the threads that all others share."""
    with threads_taken():
        assert await asyncio.wait_for(readiness_of(all_running).is_ready(), 5.0)


async def test_a_controller_that_is_away_from_the_start_is_not_ready():
    def away() -> ReplicaCounts:
        raise RuntimeError("The controller is not running.")

    assert not await readiness_of(away).is_ready()


async def test_a_client_that_goes_away_takes_no_call_with_it():
    """Ray cancels what runs in the context of a request whose client has left."""
    request: ContextVar[str] = ContextVar("request", default="none")
    asked, answered, seen = asyncio.Event(), asyncio.Event(), []

    async def slow() -> Description:
        seen.append(request.get())
        asked.set()
        await answered.wait()
        return ABOUT

    def controller() -> ReplicaCounts:
        seen.append(request.get())
        return all_running()

    readiness = readiness_of(controller, answer=slow)

    async def client() -> None:
        request.set("a client's")
        await readiness.is_ready()

    leaving = asyncio.create_task(client())
    await asyncio.wait_for(asked.wait(), 10)
    leaving.cancel()
    asyncio.get_running_loop().call_soon(answered.set)
    assert await readiness.is_ready()
    assert set(seen) == {"none"}


async def test_a_call_that_ray_cancels_is_made_again():
    answers: list[Any] = [asyncio.CancelledError(), ABOUT]

    async def cancelled() -> Description:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    readiness = readiness_of(all_running, answer=cancelled)
    assert await readiness.is_ready()
    assert readiness.description() == CONFIGURED
    assert await readiness.is_ready()
    assert readiness.description() == ABOUT
