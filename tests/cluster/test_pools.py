"""Pools whose nodes are not there, or not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, Machines, machines
from tests.cluster.names import DRAWN

pytestmark = pytest.mark.slow

POOLS = [
    {
        "name": name,
        "arch": name,
        "replicas": replicas,
        "max_replicas": 1,
        "num_gpus": 1.0,
        "device": "cpu",
        "frames_per_s": 15.0,
        "usd_per_hour": price,
    }
    for name, replicas, price in (("hopper", 1, 0.01), ("ada", 0, 1.0))
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The cheapest pool has no node, and the other one has no replica until work waits."""
    with machines(tmp_path_factory.mktemp("pools")) as cluster:
        cluster.add("head", resources=STATE)
        cluster.add("ada", num_gpus=1, labels={"musetalk/arch": "ada"})
        cluster.deploy(pools=POOLS, driver={"block_s": 1.0})
        cluster.wait_ready()
        yield cluster


def pool(cluster: Machines, name: str) -> dict[str, Any]:
    """Return what /health says about a pool."""
    pools = cluster.client.get("/health").json()["pools"]
    return next(each for each in pools if each["name"] == name)


def test_a_cheapest_pool_without_a_node_holds_up_no_job(cluster: Machines, media: Media) -> None:
    """Findings 2, 5 and 11: the job failed, or nothing ever started; and nobody said why."""
    assert pool(cluster, "ada")["running"] == 0
    answer = cluster.generate(**media.job("elsewhere"))
    assert answer.status_code == 200, answer.text
    assert sum(map(int, cluster.notes("ada", DRAWN))) == 150
    missing = pool(cluster, "hopper")
    assert missing["running"] == 0
    assert "no live node has the label musetalk/arch=hopper" in missing["reason"]
