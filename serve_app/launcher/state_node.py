"""The node that holds the state: the ingress runs there, and so does what writes its files.

The job registry and the results of the local store are files on one node. Exactly one node of a
cluster therefore has the resource `lipsync_state`, in the quantity 1:

    ray start --head --resources='{"lipsync_state": 1}'

The ingress takes more than half of it. A second one, as a new deployment starts it, then has to
wait until the first has ended, so the registry never has two writers. The launcher gives the
resource to a cluster that it starts itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any

STATE_RESOURCE = "lipsync_state"
INGRESS_SHARE = 0.6
# 256 replicas of the old and 256 of the new deployment fit in beside the ingress.
FINISHER_SHARE = 0.0005
_REMEDY = f"""start Ray on one of them with --resources='{{"{STATE_RESOURCE}": 1}}'"""


class StateNodeUnknown(Exception):
    """The ingress has no place, or more than one. The message is a sentence with the remedy."""


def has_state_node(nodes: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a node holds the state. `nodes`: as `ray.nodes()` returns them.

    A cluster of one node needs no such mark.

    Raises:
        StateNodeUnknown: there are several nodes and none is marked, several are marked, or one is
            marked with another quantity than 1.
    """
    alive = [node for node in nodes if node["Alive"]]
    marks = [mark for node in alive if (mark := node["Resources"].get(STATE_RESOURCE, 0.0))]
    if not marks:
        if len(alive) > 1:
            raise StateNodeUnknown(
                f"this cluster has {len(alive)} nodes, and none of them has the resource "
                f"{STATE_RESOURCE}, so the job registry could end up on any of them: {_REMEDY}"
            )
        return False
    if len(marks) > 1:
        raise StateNodeUnknown(
            f"{len(marks)} nodes of this cluster have the resource {STATE_RESOURCE}, and only the "
            f"one that keeps the job registry may have it: {_REMEDY} alone"
        )
    if marks != [1.0]:
        raise StateNodeUnknown(
            f"the node that keeps the job registry has {marks[0]:g} of the resource "
            f"{STATE_RESOURCE}, and must have exactly 1: {_REMEDY}"
        )
    return True
