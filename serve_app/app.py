"""Builds the Serve application from `args:` of serve_config.yaml.

`build_app`'s parameter must be annotated with a real pydantic class, so this module does not
postpone annotations.
"""

import logging
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.api.ingress import Ingress
from serve_app.config.environment import EnvironmentInvalid, read_environment
from serve_app.config.settings import APP_NAME, AppArgs, PoolSettings, StageSettings, jobs_at_a_time
from serve_app.graph.builders import resolve
from serve_app.graph.finisher import Finisher
from serve_app.graph.generator import Generator
from serve_app.graph.preprocessor import Preprocessor
from serve_app.graph.replicas import pool_deployment
from serve_app.launcher.environment_checks import environment_faults
from serve_app.scheduling.pool_state import CALLS_PER_REPLICA

logger = logging.getLogger("ray.serve")

ARCH_LABEL = "musetalk/arch"  # the ray.io/ prefix is reserved
ANY_NODE = "any"  # this value of `pools[].arch` needs no label
MAX_HTTP = 1000  # open requests at the ingress, waiting callers and event streams included
CALLS_AHEAD = 2  # calls that a CPU stage accepts early, so that their arguments are there in time


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
    """
    return bind_app(args, StageKinds())


def bind_app(args: AppArgs, kinds: StageKinds) -> Application:
    """Build the application of stages of these kinds; see `build_app`."""
    env = read_environment()
    if faults := list(environment_faults(env)):
        raise EnvironmentInvalid("; ".join(faults))
    args = resolve(args, env)
    logger.info("engine: %s, landmarks: %s", args.engine, args.landmarks)
    gpus = args.preprocessor.num_gpus
    # All jobs that run, wait for a place or are previews may download concurrently, in no thread.
    jobs = jobs_at_a_time(args, env)
    preprocessor = _bind(
        kinds.preprocessor,
        "Preprocessor",
        args.preprocessor,
        args,
        num_gpus=gpus,
        fetches=2 * jobs + args.queue.downloads_ahead,
    )
    finisher = _bind(kinds.finisher, "Finisher", args.finisher, args)
    generators = {pool.name: _bind_pool(kinds.generator, pool, args) for pool in args.pools}
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=MAX_HTTP,
        graceful_shutdown_timeout_s=args.queue.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        ray_actor_options={"num_cpus": args.ingress_cpus},
    )
    return ingress.bind(args, preprocessor, generators, finisher, APP_NAME)


def _bind(
    kind: type,
    name: str,
    stage: StageSettings,
    args: AppArgs,
    num_gpus: float = 0.0,
    fetches: int = 0,
) -> Any:
    options: dict[str, Any] = {"num_cpus": stage.num_cpus, "num_gpus": num_gpus}
    if stage.label_selector:
        options["label_selector"] = stage.label_selector
    return serve.deployment(
        kind,
        name=name,
        max_ongoing_requests=stage.threads + CALLS_AHEAD + fetches,
        graceful_shutdown_timeout_s=args.queue.drain_s,
        ray_actor_options=options,
        **_scaling(stage.replicas, stage.max_replicas, stage.threads),
    ).bind(args)


def _bind_pool(kind: type, pool: PoolSettings, args: AppArgs) -> Any:
    options: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
    if pool.arch != ANY_NODE:
        options["label_selector"] = {ARCH_LABEL: pool.arch}
    return serve.deployment(
        kind,
        name=pool_deployment(pool.name),
        max_ongoing_requests=CALLS_PER_REPLICA,
        graceful_shutdown_timeout_s=args.queue.drain_s,
        ray_actor_options=options,
        **_scaling(pool.replicas, pool.max_replicas, 1),
    ).bind(args, pool)


def _scaling(replicas: int, max_replicas: int | None, target_calls: int) -> dict[str, Any]:
    if max_replicas is None:
        return {"num_replicas": replicas}
    return {
        "autoscaling_config": {
            "min_replicas": replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_calls,
        }
    }
