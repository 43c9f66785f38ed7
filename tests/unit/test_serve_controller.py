"""What is private in Serve is still there, and its description of everything is understood."""

import inspect
from typing import Any

from ray.serve._private import controller
from ray.serve._private.common import ReplicaState

from serve_app.graph import serve_controller
from serve_app.graph.serve_controller import NO_REPLICAS, ReplicaCounts, counts_in


def replicas(*states: str) -> dict[str, Any]:
    return {
        "replicas": [{"state": state} for state in states],
        "target_num_replicas": len(states),
        "message": "",
    }


def details(**deployments: dict[str, Any]) -> dict[str, Any]:
    return {"applications": {"lipsync": {"deployments": deployments}}}


def test_the_private_calls_of_the_controller_exist():
    """A new version of Ray may rename them; the exact version is pinned."""
    kind = controller.ServeController
    assert not inspect.iscoroutinefunction(kind.get_serve_instance_details)


def test_every_state_of_a_replica_is_known():
    """A state that Ray adds has to be put where it belongs."""
    neither = {"STOPPING", "STOPPED"}
    known = serve_controller._SERVING | serve_controller._STARTING | neither
    assert {state.value for state in ReplicaState} == known


def test_replicas_are_counted_by_what_they_do():
    found = counts_in(
        details(
            Ingress=replicas("RUNNING"),
            Finisher=replicas("PENDING_MIGRATION", "RECOVERING", "STARTING", "STOPPING"),
        ),
        "lipsync",
    )
    assert found == ReplicaCounts(
        running={"Ingress": 1, "Finisher": 2},
        starting={"Ingress": 0, "Finisher": 1},
        wanted={"Ingress": 1, "Finisher": 4},
        messages={},
    )


def test_what_serve_says_about_a_deployment_is_kept():
    broken = replicas() | {"message": "The deployment failed to start 3 times."}
    found = counts_in(details(Finisher=broken), "lipsync")
    assert found.messages == {"Finisher": "The deployment failed to start 3 times."}


def test_an_application_that_is_not_deployed_has_no_replicas():
    assert counts_in({"applications": {}}, "lipsync") == NO_REPLICAS
