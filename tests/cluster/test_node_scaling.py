"""Scaling over labelled nodes that come and go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, Machines, machines
from tests.decoding import frames_of
from tests.waiting import until

pytestmark = pytest.mark.slow

NO_ADA = "no live node has the label musetalk/arch=ada"
WAIT_S = 90.0


def pool(name: str, usd_per_hour: float) -> dict[str, Any]:
    return {
        "name": name,
        "arch": name,
        "replicas": 0,
        "max_replicas": 1,
        "frames_per_s": 12.0,
        "usd_per_hour": usd_per_hour,
    }


def pools(cluster: Machines) -> dict[str, dict[str, Any]]:
    """Return what `/health` says about each pool."""
    return {one["name"]: one for one in cluster.client.get("/health").json()["pools"]}


def wait_until(cluster: Machines, name: str, **values: Any) -> None:
    """Wait until `/health` says this about a pool."""
    deadline = time.monotonic() + WAIT_S
    while not values.items() <= (found := pools(cluster)[name]).items():
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def said(cluster: Machines) -> list[bool]:
    """Return, for each line about the pool's place, whether it says that it cannot run."""
    lines = [line for line in cluster.log if "Generator-ada can" in line]
    return ["cannot run" in line for line in lines]


def test_a_pool_that_lost_its_only_node_is_replaced_by_another_from_zero(
    media: Media, tmp_path: Path
) -> None:
    """Findings 2, 5 and 11: the cheapest pool kept its work, a pool at 0 never started, and nothing
    said that one could not run.
    """
    with machines(tmp_path / "nodes") as cluster:
        cluster.add("head", resources=STATE)
        for arch in ("ada", "hopper"):
            cluster.add(arch, labels={"musetalk/arch": arch})
        cluster.deploy(
            pools=[pool("ada", 0.1), pool("hopper", 9.0)],
            scaling={"drain_s": 30.0, "load_s": 2.0, "job_frames": 25},
        )
        cluster.wait_ready()
        assert cluster.client.post("/v1/avatar/jobs", json=media.job("moved")).status_code == 202
        cluster.wait_drawn("moved")
        assert (pools(cluster)["ada"]["running"], pools(cluster)["hopper"]["wanted"]) == (1, 0)
        cluster.remove("ada")
        job = cluster.wait_for("moved", "succeeded", "failed")
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
        assert len(frames_of(cluster.output(job, tmp_path))) == 150
        assert pools(cluster)["hopper"]["running"] == 1
        wait_until(cluster, "ada", reason=NO_ADA, running=0)
        cluster.add("ada-2", labels={"musetalk/arch": "ada"})
        wait_until(cluster, "ada", reason="")
        # Ray brings the lines of other nodes a moment later.
        until(lambda: said(cluster) == [True, False], lambda: f"{said(cluster)} was logged")
