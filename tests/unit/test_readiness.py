"""Readiness is answered in time, whatever has become of Serve's controller."""

import threading
from types import SimpleNamespace

import pytest

from serve_app import readiness as readiness_module
from serve_app.driver import Graph, Pool
from serve_app.readiness import Readiness
from serve_app.transfers import Description

ABOUT = Description("warp", "1", "mesh", "cpu", "cpu")


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


async def test_a_controller_that_is_away_is_not_ready(readiness, monkeypatch):
    def away():
        raise RuntimeError("The controller is not running.")

    monkeypatch.setattr(readiness_module.serve, "status", away)
    assert not await readiness.is_ready()
