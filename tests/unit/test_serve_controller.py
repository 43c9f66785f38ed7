"""What is private in Serve is still there, and its description of everything is understood."""

import inspect
from dataclasses import fields
from typing import Any

from ray.serve._private import controller
from ray.serve._private.common import ReplicaMetricReport, ReplicaState

from serve_app.graph import serve_controller
from serve_app.graph.serve_controller import NO_REPLICAS, ReplicaCounts, counts_in


def replica(state: str) -> dict[str, Any]:
    """Return a replica as Serve describes it; one that starts may have no place yet."""
    return {"state": state} if state == "STARTING" else {"state": state, "node_id": f"on-{state}"}


def replicas(*states: str) -> dict[str, Any]:
    return {
        "replicas": [replica(state) for state in states],
        "target_num_replicas": len(states),
        "message": "",
    }


def details(**deployments: dict[str, Any]) -> dict[str, Any]:
    return {"applications": {"lipsync": {"deployments": deployments}}}


def test_the_private_calls_of_the_controller_exist():
    """A new version of Ray may rename them; the exact version is pinned."""
    kind = controller.ServeController
    assert list(inspect.signature(kind.get_serve_instance_details).parameters)[:1] == ["self"]
    assert list(inspect.signature(kind.record_autoscaling_metrics_from_replica).parameters) == [
        "self",
        "replica_metric_report",
    ]
    names = [field.name for field in fields(ReplicaMetricReport)]
    assert names == ["replica_id", "metrics", "timestamp"]


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
        nodes={
            "Ingress": frozenset({"on-RUNNING"}),
            "Finisher": frozenset({"on-PENDING_MIGRATION", "on-RECOVERING"}),
        },
    )


def test_what_serve_says_about_a_deployment_is_kept():
    broken = replicas() | {"message": "The deployment failed to start 3 times."}
    found = counts_in(details(Finisher=broken), "lipsync")
    assert found.messages == {"Finisher": "The deployment failed to start 3 times."}


def test_whether_a_policy_was_deployed_is_read_from_the_configuration():
    everything = details(Ingress=replicas("RUNNING"))
    assert not counts_in(everything, "lipsync").has_policy
    policy = {"policy_function": "serve_app.scaling.policy:follow_work"}
    everything["applications"]["lipsync"]["deployed_app_config"] = {"autoscaling_policy": policy}
    assert counts_in(everything, "lipsync").has_policy


def test_an_application_that_is_not_deployed_has_no_replicas():
    assert counts_in({"applications": {}}, "lipsync") == NO_REPLICAS
