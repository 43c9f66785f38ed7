"""Scratch on nodes that have lost their last Preprocessor and Finisher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app.config.settings import AppArgs
from serve_app.graph.left_nodes import LeftNodes, clean_here
from serve_app.graph.replicas import ReplicaCounts
from tests.unit.stage_rig import Stages, running, settle, until

OWN = "ingress"


def on(preprocessor: set[str], finisher: set[str]) -> ReplicaCounts:
    """Return counts of replicas on these nodes, and of an ingress."""
    nodes = {"Preprocessor": preprocessor, "Finisher": finisher, "Ingress": {OWN}}
    counts = running(cpu=1)
    frozen = {name: frozenset(there) for name, there in nodes.items()}
    return ReplicaCounts(counts.running, {}, {}, {}, nodes=frozen)


class Cleaned(list[tuple[str, tuple[str, ...]]]):
    """What was asked to be cleaned."""

    async def __call__(self, node: str, attempts: Sequence[str]) -> None:
        self.append((node, tuple(attempts)))
        if node == "lost":
            raise ConnectionError(node)


async def test_only_the_nodes_that_were_left_during_an_attempt_are_cleaned() -> None:
    cleaned = Cleaned()
    left = LeftNodes(cleaned, OWN)
    left.follow(on({"before"}, {OWN}))
    left.follow(on({"a"}, {OWN}))
    left.begin("x")
    left.follow(on({"b"}, {"b"}))
    left.begin("y")
    left.follow(on({"c"}, {"b"}))
    left.release("x")
    left.release("x")
    left.release("y")
    await settle()
    assert cleaned == [("a", ("x",))]
    left.follow(on({"c"}, {"c"}))
    left.release("y")
    left.end("y")
    left.release("y")
    await settle()
    assert cleaned[1:] == [("b", ("y",))]


async def test_a_node_that_is_lost_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    cleaned = Cleaned()
    left = LeftNodes(cleaned, OWN)
    left.follow(on({"here"}, {"here"}))
    await left.visit(["lost", OWN, "here", "empty"])
    assert cleaned == [("lost", ()), ("empty", ())]
    [record] = [each for each in caplog.records if "is not removed" in each.message]
    assert record.__dict__["node"] == "lost"


async def test_a_job_leaves_nothing_on_a_node_whose_replica_moved(tmp_path: Path) -> None:
    cleaned = Cleaned()
    left = LeftNodes(cleaned, OWN)
    stages = Stages(tmp_path, frames=50, left_nodes=left)
    left.follow(on({"a"}, {"b"}))
    stages.capacity.follow(running(cpu=1))
    stages.holds = {"generate"}
    job = stages.start()
    await until(lambda: stages.of("generate") != [])
    left.follow(on({"b"}, {"b"}))
    stages.go_on.set()
    async with asyncio.timeout(30):
        await job
    await settle()
    assert cleaned == [("a", (b"a".hex().zfill(32),))]
    left.follow(on(set(), set()))
    left.release(b"a".hex().zfill(32))  # it has been forgotten
    await settle()
    assert len(cleaned) == 1


def test_what_is_named_or_stale_is_removed_and_all_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSETALK_WORKDIR", str(tmp_path))
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}]})
    clean_here(args, ["a" * 32])
    assert list(tmp_path.iterdir()) == []  # a node that never worked on a job gets no folder
    root = tmp_path / "jobs"
    root.mkdir(mode=0o700)
    for name in "abc":
        (root / (name * 32)).mkdir(mode=0o700)
    os.utime(root / ("b" * 32), (0, 0))
    clean_here(args, ["a" * 32])
    assert [path.name for path in root.iterdir()] == ["c" * 32]
