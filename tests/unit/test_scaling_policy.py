"""The autoscaling policy, with the values that Serve's controller gives it."""

import subprocess
import sys
import warnings
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.scaling import policy
from serve_app.scaling.policy import WANTED, follow_work

Series = dict[str, dict[Any, list[TimeStampedValue]]]


def deployment(name: str) -> DeploymentID:
    return DeploymentID(name, "lipsync")


def context(
    name: str,
    metrics: dict[str, list[list[float]]] | None = None,
    *,
    target: int = 0,
) -> AutoscalingContext:
    """Return what the controller says about a deployment.

    `metrics`: by name, the samples of each replica, the newest last.
    """
    raw: Series = {
        metric: {
            ReplicaID(f"r{index}", deployment(name)): [
                TimeStampedValue(float(at), value) for at, value in enumerate(samples)
            ]
            for index, samples in enumerate(by_replica)
        }
        for metric, by_replica in (metrics or {}).items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoscalingConfig(
            min_replicas=0,
            max_replicas=8,
            target_ongoing_requests=1,
            upscale_delay_s=0,
            downscale_delay_s=0,
        )
    return AutoscalingContext(
        deployment_id=deployment(name),
        deployment_name=name,
        app_name="lipsync",
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics=raw,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=100.0,
        config=config,
    )


def decisions(*contexts: AutoscalingContext) -> dict[str, int]:
    """Return what Serve does with the policy's answer, by deployment."""
    wrapped = _apply_app_level_autoscaling_config(follow_work)
    decided, _ = wrapped({one.deployment_id: one for one in contexts})
    return {where.name: number for where, number in decided.items()}


def test_a_pool_gets_what_the_ingress_reported_last():
    ingress = context(
        "Ingress",
        {f"{WANTED}Generator-ada": [[0.0, 4.0]], f"{WANTED}Generator-hopper": [[2.0, 1.0]]},
    )
    found = decisions(ingress, context("Generator-ada"), context("Generator-hopper", target=2))
    assert found == {"Ingress": 1, "Generator-ada": 4, "Generator-hopper": 1}


@pytest.mark.parametrize(
    "metrics", [None, {}, {"something else": [[1.0]]}, {f"{WANTED}Generator-ada": [[]]}]
)
def test_without_a_report_a_pool_keeps_its_target(metrics: dict[str, list[list[float]]] | None):
    """An ingress that has just restarted reports nothing; others work on."""
    ingress = context("Ingress", metrics)
    assert decisions(ingress, context("Generator-ada", target=3)) == {"Ingress": 1}


def test_while_two_ingresses_report_the_higher_wish_counts():
    """During a redeploy, the new one does not know the work of the one that drains."""
    ingress = context("Ingress", {f"{WANTED}Generator-ada": [[3.0], [0.0]]})
    assert decisions(ingress, context("Generator-ada", target=3))["Generator-ada"] == 3


def test_the_policy_stands_alone_when_the_controller_unpickles_it():
    """It is pickled by value; whatever it imported from this project could be missing there."""
    cloudpickle.register_pickle_by_value(policy)
    try:
        pickled = cloudpickle.dumps(follow_work)
    finally:
        cloudpickle.unregister_pickle_by_value(policy)
    code = (
        "import pickle, sys; pickle.load(sys.stdin.buffer)({});"
        "sys.exit(any(name.startswith('serve_app') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], input=pickled, check=True, timeout=60)
