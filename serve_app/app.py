"""Builds the Serve application from `args:` of serve_config.yaml.

`build_app`'s parameter must be annotated with a real pydantic class, so this module does not
postpone annotations.
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from serve_app.api.ingress import Ingress
from serve_app.config.environment import EnvironmentInvalid, read_environment
from serve_app.config.settings import APP_NAME, AppArgs, PoolSettings, StageSettings, jobs_at_a_time
from serve_app.graph.builders import keeps_results_locally, resolve
from serve_app.graph.finisher import Finisher
from serve_app.graph.free_replicas import to_free_replicas
from serve_app.graph.generator import Generator
from serve_app.graph.places import actor_options, pool_place, stage_place
from serve_app.graph.preprocessor import Preprocessor
from serve_app.graph.replicas import pool_deployment
from serve_app.launcher.environment_checks import environment_faults
from serve_app.launcher.state_node import (
    FINISHER_SHARE,
    INGRESS_SHARE,
    STATE_RESOURCE,
    has_state_node,
)
from serve_app.scaling.placement import Place
from serve_app.scheduling.pool_state import CALLS_PER_REPLICA

logger = logging.getLogger("ray.serve")

MAX_HTTP = 1000  # open requests at the ingress, waiting callers and event streams included
CALLS_AHEAD = 2  # calls that a CPU stage accepts early, so that their arguments are there in time
REPORT_S = 1.0  # between two reports about the waiting work; 1 % of a core of each replica
DOWNSCALE_S = 5.0  # above the age of the oldest report that can still arrive


@dataclass(frozen=True, slots=True)
class StageKinds:
    """The classes of the stages. Benchmarks and tests replace one by a subclass of its own."""

    preprocessor: type = Preprocessor
    generator: type = Generator
    finisher: type = Finisher


def build_app(args: AppArgs) -> Application:
    """Build Ingress, Preprocessor, one Generator per row of `pools:`, and Finisher.

    `auto` for engine and landmarks is decided here, once, and logged.

    Raises:
        EnvironmentInvalid: the application cannot run in this environment. The launcher checks its
            own environment; a joined cluster, or `serve deploy`, has another one.
        StateNodeUnknown: the cluster does not say which of its nodes keeps the job registry.
    """
    return bind_app(args, StageKinds())


def bind_app(args: AppArgs, kinds: StageKinds) -> Application:
    """Build the application of stages of these kinds; see `build_app`."""
    env = read_environment()
    if faults := list(environment_faults(env)):
        raise EnvironmentInvalid("; ".join(faults))
    is_pinned = ray.is_initialized() and has_state_node(ray.nodes())
    args = resolve(args, env)
    logger.info("engine: %s, landmarks: %s", args.engine, args.landmarks)
    # All jobs that run, wait for a place or are previews may download concurrently, in no thread.
    jobs = jobs_at_a_time(args, env)
    preprocessor = _bind(
        kinds.preprocessor,
        "Preprocessor",
        args.preprocessor,
        args,
        stage_place(args.preprocessor, args.preprocessor.num_gpus),
        fetches=2 * jobs + args.queue.downloads_ahead,
    )
    # The ingress serves the files of the local store, so they have to be written on its node.
    beside_ingress = FINISHER_SHARE if is_pinned and keeps_results_locally(env) else 0.0
    finisher = _bind(
        kinds.finisher,
        "Finisher",
        args.finisher,
        args,
        stage_place(args.finisher),
        state_share=beside_ingress,
    )
    generators = {pool.name: _bind_pool(kinds.generator, pool, args) for pool in args.pools}
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        **_replicas(1, 1 if args.is_scaled else None, MAX_HTTP),
        max_ongoing_requests=MAX_HTTP,
        graceful_shutdown_timeout_s=args.queue.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        ray_actor_options={
            "num_cpus": args.ingress_cpus,
            "resources": {STATE_RESOURCE: INGRESS_SHARE} if is_pinned else {},
        },
    )
    return ingress.bind(args, preprocessor, generators, finisher, APP_NAME)


def _bind(
    kind: type,
    name: str,
    stage: StageSettings,
    args: AppArgs,
    place: Place,
    fetches: int = 0,
    state_share: float = 0.0,
) -> Any:
    options = actor_options(place)
    if state_share:
        options["resources"] = {STATE_RESOURCE: state_share}
    return serve.deployment(
        kind,
        name=name,
        max_ongoing_requests=stage.threads + CALLS_AHEAD + fetches,
        graceful_shutdown_timeout_s=args.queue.drain_s,
        ray_actor_options=options,
        **_replicas(stage.replicas, stage.max_replicas, stage.threads),
    ).bind(args)


def _bind_pool(kind: type, pool: PoolSettings, args: AppArgs) -> Any:
    return serve.deployment(
        kind,
        name=pool_deployment(pool.name),
        max_ongoing_requests=CALLS_PER_REPLICA,
        request_router_config=to_free_replicas(),
        graceful_shutdown_timeout_s=args.queue.drain_s,
        ray_actor_options=actor_options(pool_place(pool)),
        **_replicas(pool.replicas, pool.max_replicas, 1),
    ).bind(args, pool)


def _replicas(replicas: int, max_replicas: int | None, target_calls: int) -> dict[str, Any]:
    """Return the options for the number of replicas; without a maximum it is fixed.

    The ingress asks for fewer only after a long time, so the delay on the way down only serves
    against a report that crosses a newer one.
    """
    if max_replicas is None:
        return {"num_replicas": replicas}
    with warnings.catch_warnings():
        # Ray intends to replace the interval by a variable of the environment, one day.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=target_calls,
            upscale_delay_s=0.0,
            downscale_delay_s=DOWNSCALE_S,
            metrics_interval_s=REPORT_S,
            look_back_period_s=2 * REPORT_S,
        )
    return {"autoscaling_config": config}
