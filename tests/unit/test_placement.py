"""A replica that finds no place is explained."""

import pytest

from serve_app.scaling.placement import Node, Place, obstacle

ADA = Node({"musetalk/arch": "ada"}, {"GPU": 1.0, "CPU": 8.0}, {"GPU": 0.2, "CPU": 4.0})
PLAIN = Node({}, {"CPU": 2.0}, {"CPU": 2.0})


def place(arch: str | None = "ada", **resources: float) -> Place:
    return Place({} if arch is None else {"musetalk/arch": arch}, resources)


def reason(wanted: Place, *nodes: Node, now: bool = False) -> str | None:
    found = obstacle(wanted, nodes, now=now)
    return None if found is None else found.reason


def test_a_label_that_no_node_has_is_named_with_the_command_that_gives_it():
    found = obstacle(place("hopper", GPU=1.0), [ADA, PLAIN], now=False)
    assert found is not None
    assert found.reason == "no live node has the label musetalk/arch=hopper"
    assert "--labels musetalk/arch=hopper" in found.remedy


def test_a_cluster_without_nodes_is_no_place():
    assert reason(place(None, CPU=1.0)) == "Ray lists no live node"


def test_a_node_that_is_too_small_is_no_place():
    assert reason(place(None, GPU=1.0), PLAIN) == "no live node has 1 GPUs"
    assert reason(place(GPU=2.0), ADA) == "no live node with musetalk/arch=ada has 2 GPUs"
    assert reason(place(GPU=1.0, CPU=0.5), ADA, PLAIN) is None


def test_what_others_have_taken_counts_only_for_replicas_that_start_now():
    assert reason(place(GPU=1.0, CPU=0.25), ADA) is None
    found = reason(place(GPU=1.0, CPU=0.25), ADA, PLAIN, now=True)
    assert found == (
        "all 1 live nodes with musetalk/arch=ada are taken: none has 1 GPUs and 0.25 CPUs free"
    )
    assert reason(place(GPU=0.2, CPU=4.0), ADA, now=True) is None


@pytest.mark.parametrize(
    ("expression", "fits"),
    [("ada", True), ("!ada", False), ("!hopper", True), ("in(hopper, ada)", True),
     ("in(hopper)", False), ("!in(hopper,ada)", False)],
)  # fmt: skip
def test_the_expressions_of_ray_are_understood(expression: str, fits: bool):
    assert (reason(place(expression, CPU=1.0), ADA) is None) == fits
