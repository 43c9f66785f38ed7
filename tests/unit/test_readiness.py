"""Readiness is answered in time, whatever has become of Serve's controller."""

import asyncio
import threading
from contextvars import ContextVar
from types import SimpleNamespace

import pytest

from serve_app.graph import readiness as readiness_module
from serve_app.graph.pools import Graph, Pool
from serve_app.graph.readiness import Readiness
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


@pytest.fixture
def readiness(monkeypatch):
    monkeypatch.setattr(readiness_module, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(readiness_module, "FRESH_S", 0.0)
    monkeypatch.setattr(readiness_module, "SOON_S", 0.0)
    pool = Pool("cpu", Describing(), capacity=1, usd_per_frame=0.0)
    return Readiness(Graph(None, (pool,), None), "lipsync")


def status(*names: str):
    deployments = {name: SimpleNamespace(replica_states={"RUNNING": 1}) for name in names}
    return SimpleNamespace(applications={"lipsync": SimpleNamespace(deployments=deployments)})


async def test_every_stage_has_to_run(readiness, monkeypatch):
    stages = ["Preprocessor", "Finisher", "Generator-cpu"]
    for missing in stages:
        there = status(*[name for name in stages if name != missing])
        monkeypatch.setattr(readiness_module.serve, "status", lambda there=there: there)
        assert not await readiness.is_ready()
    monkeypatch.setattr(readiness_module.serve, "status", lambda: status(*stages))
    assert await readiness.is_ready()
    assert readiness.facts()["engine"] == "warp"


async def test_a_controller_that_hangs_is_asked_by_one_thread_only(readiness, monkeypatch):
    answer, asked = threading.Event(), 0

    def hangs():
        nonlocal asked
        asked += 1
        assert answer.wait(30)
        return status("Preprocessor", "Finisher", "Generator-cpu")

    monkeypatch.setattr(readiness_module.serve, "status", hangs)
    for _ in range(5):
        assert not await readiness.is_ready()
    assert asked == 1
    answer.set()
    monkeypatch.setattr(readiness_module, "CALL_TIMEOUT_S", 10.0)
    assert await readiness.is_ready()


async def test_threads_that_are_all_taken_do_not_make_a_worker_unready(readiness, monkeypatch):
    """Names that do not resolve and disks that stall fill the threads that all others share."""
    stages = status("Preprocessor", "Finisher", "Generator-cpu")
    monkeypatch.setattr(readiness_module.serve, "status", lambda: stages)
    monkeypatch.setattr(readiness_module, "CALL_TIMEOUT_S", 10.0)
    with threads_taken():
        assert await asyncio.wait_for(readiness.is_ready(), 5.0)


async def test_a_controller_that_is_away_is_not_ready(readiness, monkeypatch):
    def away():
        raise RuntimeError("The controller is not running.")

    monkeypatch.setattr(readiness_module.serve, "status", away)
    assert not await readiness.is_ready()


async def test_a_client_that_goes_away_takes_no_call_with_it(readiness, monkeypatch):
    """Ray cancels what runs in the context of a request whose client has left."""
    request: ContextVar[str] = ContextVar("request", default="none")
    asked, seen = asyncio.Event(), []

    class Slow:
        @property
        def describe(self):
            async def remote() -> Description:
                seen.append(request.get())
                asked.set()
                await asyncio.sleep(0.2)
                return ABOUT

            return SimpleNamespace(remote=remote)

    monkeypatch.setattr(readiness_module, "CALL_TIMEOUT_S", 10.0)
    stages = status("Preprocessor", "Finisher", "Generator-cpu")
    monkeypatch.setattr(readiness_module.serve, "status", lambda: stages)
    readiness = Readiness(Graph(None, (Pool("cpu", Slow(), 1, 0.0),), None), "lipsync")

    async def client() -> None:
        request.set("a client's")
        await readiness.is_ready()

    leaving = asyncio.create_task(client())
    await asyncio.wait_for(asked.wait(), 10)
    leaving.cancel()
    assert await readiness.is_ready()
    assert seen == ["none"]


async def test_a_call_that_ray_cancels_is_not_ready_and_asked_again(readiness, monkeypatch):
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

    stages = status("Preprocessor", "Finisher", "Generator-cpu")
    monkeypatch.setattr(readiness_module.serve, "status", lambda: stages)
    readiness = Readiness(Graph(None, (Pool("cpu", Cancelled(), 1, 0.0),), None), "lipsync")
    assert not await readiness.is_ready()
    assert await readiness.is_ready()
