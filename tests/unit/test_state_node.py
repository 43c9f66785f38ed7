"""Which node keeps the state is said by the cluster, or the start is refused."""

import pytest

from serve_app.launcher.state_node import (
    FINISHER_SHARE,
    INGRESS_SHARE,
    STATE_RESOURCE,
    StateNodeUnknown,
    has_state_node,
)


def node(mark: float = 0.0, *, is_alive: bool = True) -> dict[str, object]:
    resources = {"CPU": 4.0} | ({STATE_RESOURCE: mark} if mark else {})
    return {"Alive": is_alive, "Resources": resources}


def test_one_marked_node_keeps_the_state() -> None:
    assert has_state_node([node(), node(1.0), node()])
    assert has_state_node([node(1.0)])


def test_a_single_node_needs_no_mark() -> None:
    assert not has_state_node([node()])
    assert not has_state_node([node(), node(is_alive=False)])


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node(), node()], "has 2 nodes, and none of them has the resource lipsync_state"),
        ([node(), node(), node(1.0, is_alive=False)], "has 2 nodes, and none of them"),
        ([node(1.0), node(), node(1.0)], "2 nodes of this cluster have the resource"),
        ([node(2.0), node()], "has 2 of the resource lipsync_state, and must have exactly 1"),
        ([node(0.5)], "has 0.5 of the resource"),
    ],
)
def test_a_place_that_is_not_clear_is_refused_with_the_remedy(
    nodes: list[dict[str, object]], said: str
) -> None:
    with pytest.raises(StateNodeUnknown, match="start Ray on one of them with --resources=") as no:
        has_state_node(nodes)
    assert said in str(no.value)


def test_two_ingresses_do_not_fit_and_every_finisher_does() -> None:
    assert 2 * INGRESS_SHARE > 1
    assert INGRESS_SHARE + 2 * 256 * FINISHER_SHARE <= 1
