"""The autoscaling policy of the application; `autoscaling_policy:` in serve_config.yaml names it.

It runs in Serve's controller ten times a second, so it does no input or output, and it is pickled
together with this module, so it imports nothing of this project. It decides nothing about pools:
the ingress does (demand.py) and reports how many replicas each pool should have.

The CPU stages report the calls that occupy or await a thread. Calls that Serve still holds back,
because all replicas are full, are added here.
"""

import math
from collections.abc import Mapping
from typing import Any

INGRESS = "Ingress"
POOL = "Generator-"
WANTED = "wanted:"  # and the name of a pool: a metric of the ingress
BUSY = "busy"  # a metric of the CPU stages

Decisions = tuple[dict[Any, int], dict[Any, dict[str, Any]]]


def follow_work(contexts: Mapping[Any, Any]) -> Decisions:
    """Return the number of replicas for each deployment that is scaled, and no state.

    `contexts`: Serve's `AutoscalingContext` of each deployment by its id. A deployment that nothing
    is reported about keeps its target; so do all pools while the ingress starts. Serve applies
    bounds and delays afterwards.
    """
    wanted: dict[str, float] = {}
    for deployment, context in contexts.items():
        if deployment.name == INGRESS:
            wanted = _wanted(context)
    decisions = {}
    for deployment, context in contexts.items():
        number = _number(deployment.name, context, wanted)
        if number is not None:
            decisions[deployment] = number
    return decisions, {}


def _number(name: str, context: Any, wanted: Mapping[str, float]) -> int | None:
    if name == INGRESS:
        return 1
    if name.startswith(POOL):
        number = wanted.get(name.removeprefix(POOL))
        return None if number is None else math.ceil(number)
    busy = (context.raw_metrics or {}).get(BUSY)
    if not busy:
        return None
    calls = sum(_last(busy).values()) + (context.total_queued_requests or 0.0)
    return math.ceil(calls / context.config.get_target_ongoing_requests())


def _wanted(context: Any) -> dict[str, float]:
    """Return the wanted replicas by pool. During a redeploy two ingresses report; more counts."""
    return {
        metric.removeprefix(WANTED): max(last.values())
        for metric, series in (context.raw_metrics or {}).items()
        if metric.startswith(WANTED) and (last := _last(series))
    }


def _last(series_by_replica: Mapping[Any, Any]) -> dict[Any, float]:
    """Return each replica's last sample; those before it are history."""
    return {
        replica: series[-1].value for replica, series in series_by_replica.items() if len(series)
    }
