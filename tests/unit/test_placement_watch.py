"""Deployments that no node can take are found, logged once, and logged again when they can run."""

import logging

import pytest

from serve_app.graph.placement_watch import EAGER_S, PlacementWatch
from serve_app.scaling.placement import Node, Place

PLAIN = Node({}, {"CPU": 4.0}, {"CPU": 4.0})
ADA = Node({"musetalk/arch": "ada"}, {"GPU": 1.0}, {"GPU": 1.0})
PLACES = {"Generator-ada": Place({"musetalk/arch": "ada"}, {"GPU": 1.0})}


class Cluster:
    """The nodes of a cluster, and its clock."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = [PLAIN, *nodes]
        self.now_s = 0.0

    def watch(self, *, awaits_nodes: bool = False) -> PlacementWatch:
        return PlacementWatch(
            PLACES,
            awaits_nodes=awaits_nodes,
            read_nodes=lambda: list(self.nodes),
            clock=lambda: self.now_s,
        )

    async def look(self, watch: PlacementWatch, times: int = 1) -> None:
        for _ in range(times):
            await watch.look({"Generator-ada": 1})
            self.now_s += EAGER_S


async def test_an_obstacle_is_logged_once_with_its_remedy_and_once_when_it_is_gone(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    cluster = Cluster()
    watch = cluster.watch()
    await cluster.look(watch)
    assert watch.reason("Generator-ada") == ""  # the table of nodes may lag behind
    await cluster.look(watch, 3)
    assert watch.reason("Generator-ada") == "no live node has the label musetalk/arch=ada"
    cluster.nodes.append(ADA)
    await cluster.look(watch, 2)
    assert watch.reason("Generator-ada") == ""
    lost, found = [record.getMessage() for record in caplog.records]
    assert lost == (
        "Generator-ada cannot run: no live node has the label musetalk/arch=ada. Start a node "
        "with it: `ray start --address=… --labels musetalk/arch=ada`"
    )
    assert found == "Generator-ada can run: a node has room for it"


async def test_where_an_autoscaler_starts_nodes_one_is_awaited():
    cluster = Cluster()
    watch = cluster.watch(awaits_nodes=True)
    await cluster.look(watch, 2)
    assert watch.reason("Generator-ada").endswith("; a node is awaited")


async def test_the_nodes_are_not_read_more_often_than_needed():
    cluster = Cluster()
    watch = cluster.watch()
    for _ in range(10):
        await watch.look({"Generator-ada": 1})
    assert watch.reason("Generator-ada") == ""
    await cluster.look(watch)
    await cluster.look(watch)
    assert watch.reason("Generator-ada") != ""
