"""What one replica of each deployment needs of a node."""

from __future__ import annotations

from typing import Any

from serve_app.config.settings import AppArgs, PoolSettings, StageSettings
from serve_app.graph.replicas import pool_deployment
from serve_app.scaling.placement import Place

ARCH_LABEL = "musetalk/arch"  # the ray.io/ prefix is reserved
ANY_NODE = "any"  # this value of `pools[].arch` needs no label


def places_of(args: AppArgs) -> dict[str, Place]:
    """Return the place that a replica needs, by deployment; for those behind the ingress."""
    places = {pool_deployment(pool.name): pool_place(pool) for pool in args.pools}
    places["Preprocessor"] = stage_place(args.preprocessor, args.preprocessor.num_gpus)
    places["Finisher"] = stage_place(args.finisher)
    return places


def pool_place(pool: PoolSettings) -> Place:
    """Return what a Generator replica of a pool needs."""
    labels = {} if pool.arch == ANY_NODE else {ARCH_LABEL: pool.arch}
    return Place(labels, {"CPU": pool.num_cpus, "GPU": pool.num_gpus})


def stage_place(stage: StageSettings, num_gpus: float = 0.0) -> Place:
    """Return what a replica of a CPU stage needs."""
    return Place(stage.label_selector, {"CPU": stage.num_cpus, "GPU": num_gpus})


def actor_options(place: Place) -> dict[str, Any]:
    """Return Ray's options that ask for a place."""
    options: dict[str, Any] = {
        "num_cpus": place.resources["CPU"],
        "num_gpus": place.resources["GPU"],
    }
    return options | ({"label_selector": dict(place.labels)} if place.labels else {})
