"""The autoscaling policy of the application; `autoscaling_policy:` in serve_config.yaml names it.

It runs in Serve's controller ten times a second, so it does no input or output, and it is pickled
together with this module, so it imports nothing of this project. It decides nothing itself: the
ingress knows all work, and reports how many replicas each deployment should have.
"""

from collections.abc import Mapping
from typing import Any

INGRESS = "Ingress"
WANTED = "wanted:"  # and the name of a deployment: a metric of the ingress

Decisions = tuple[dict[Any, int], dict[Any, dict[str, Any]]]


def follow_work(contexts: Mapping[Any, Any]) -> Decisions:
    """Return the number of replicas of each deployment that is scaled, and no state.

    `contexts`: Serve's `AutoscalingContext` of each deployment by its id. A deployment that nothing
    is reported about keeps its target; all do while the ingress starts. Serve applies bounds and
    delays afterwards.
    """
    wanted: dict[str, int] = {}
    for deployment, context in contexts.items():
        if deployment.name == INGRESS:
            wanted = {INGRESS: 1} | _wanted(context.raw_metrics or {})
    return {
        deployment: wanted[deployment.name] for deployment in contexts if deployment.name in wanted
    }, {}


def _wanted(metrics: Mapping[str, Mapping[Any, Any]]) -> dict[str, int]:
    """Return the wanted replicas by deployment: the last sample of each series counts.

    During a redeploy two ingresses report, and the higher wish counts.
    """
    wanted = {}
    for name, by_replica in metrics.items():
        last = [series[-1].value for series in by_replica.values() if len(series)]
        if name.startswith(WANTED) and last:
            wanted[name.removeprefix(WANTED)] = round(max(last))
    return wanted
