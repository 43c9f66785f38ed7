"""The checks before Ray is started, so that a start that cannot succeed ends at once.

1. The configuration: every key and value of the file, ours and Ray's.
2. The environment: numbers, storage that is only set in part, polling without a place for outputs.
3. The machine: weights, ports, a GPU, room for every replica.

Every fault is a sentence. This is light to import: only `ray_faults` and `cpus` import Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from serve_app.config.card_checks import card_faults, installed_build, read_cards
from serve_app.config.config_file import (
    ConfigFile,
    ConfigInvalid,
    Place,
    faults_of,
    read_config_file,
)
from serve_app.config.environment import Environment, EnvironmentInvalid, read_environment
from serve_app.config.folders import check_folders
from serve_app.config.live_settings import INGRESS, read_live_settings
from serve_app.config.settings import APP_NAME, AppArgs, PoolSettings, StageSettings
from serve_app.launcher.environment_checks import environment_faults
from serve_app.launcher.machine import cpus, has_gpu, has_ipv6, port_fault
from serve_app.launcher.weight_checks import weight_faults
from serve_app.private_folders import FolderRefused

IMPORT_PATH = "serve_app.app:build_app"
POLICY_PATH = "serve_app.scaling.policy:follow_work"
Topic = Literal["weights", "gpu", "card", "placement", "ports", "folders"]
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000  # Serve's own


@dataclass(frozen=True, slots=True)
class Start:
    """A start whose configuration is valid.

    `document` is the configuration as Serve takes it, with the port that the application listens
    on. `cluster` is the address of the Ray cluster to join, or None for a cluster of our own, which
    is this machine alone.
    """

    document: dict[str, Any]
    app_name: str
    args: AppArgs
    env: Environment
    host: str
    port: int
    metrics_port: int
    cluster: str | None
    is_json: bool  # log lines

    @property
    def reached_at(self) -> str:
        """An address at which this machine reaches the application."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host


def joined_cluster(environ: Mapping[str, str]) -> str | None:
    """Return the cluster that RAY_ADDRESS names; None if it is unset or `local`."""
    address = environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """A start whose configuration and environment are valid; the machine has not been examined.

    `place`: where the arguments of our application are in `file`.
    """

    file: ConfigFile
    place: Place
    start: Start

    def fault(self, place: Place, text: str) -> str:
        """Return a sentence about a place in the arguments."""
        return self.file.fault((*self.place, *place), text)


class MachineUnfit(ConfigInvalid):
    """Nothing is wrong with the configuration, but a GPU here cannot run this build."""


def check_start(path: Path, environ: Mapping[str, str] = os.environ) -> Start:
    """Check everything that a start needs.

    Raises:
        MachineUnfit: a GPU cannot run the installed build of torch.
        ConfigInvalid: something else is wrong. All that could be found out is said at once.
    """
    planned = plan_start(path, environ)
    faults = list(machine_faults(planned, environ))
    if faults:
        kind = MachineUnfit if any(topic == "card" for topic, _ in faults) else ConfigInvalid
        raise kind(*(text for _, text in faults))
    return planned.start


def plan_start(path: Path, environ: Mapping[str, str] = os.environ) -> PlannedStart:
    """Read the configuration and the environment.

    Raises:
        ConfigInvalid: one of them is invalid.
    """
    file = read_config_file(path)
    place = _our_arguments(file)
    faults = [] if place is None else _application_faults(file, place)
    faults += ray_faults(file)
    env = None
    try:
        env = read_environment(environ)
        faults += environment_faults(env)
    except EnvironmentInvalid as exc:
        faults.append(str(exc))
    if place is None and not faults:
        faults.append(f"{path}: no application here has `import_path: {IMPORT_PATH}`")
    if faults:
        raise ConfigInvalid(*faults)
    assert place is not None and env is not None
    return PlannedStart(file, place, _start(file, place, env, environ))


def machine_faults(
    planned: PlannedStart, environ: Mapping[str, str] = os.environ
) -> Iterator[tuple[Topic, str]]:
    """Yield a topic and a sentence for everything that this machine lacks."""
    start = planned.start
    for place, text in weight_faults(start.args, start.env):
        yield "weights", planned.fault(place, text)
    if start.cluster is not None:
        return  # the replicas run on the cluster's machines
    for place, text in _gpu_faults(start, environ):
        yield "gpu", planned.fault(place, text)
    if _asks_for_gpu(start.args) and has_gpu(environ):
        for text in card_faults(read_cards(), installed_build()):
            yield "card", text
    for place, text in _placement_faults(start, environ):
        yield "placement", planned.fault(place, text)
    for text in _port_faults(start):
        yield "ports", text
    for text in _folder_faults(start):
        yield "folders", text


def _our_arguments(file: ConfigFile) -> Place | None:
    """Return the place of our application's `args` in the document, or None if it is not there."""
    applications = file.values.get("applications")
    for index, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH:
            return "applications", index, "args"
    return None


def _application_faults(file: ConfigFile, place: Place) -> list[str]:
    """Return what is wrong with our application: its arguments, and what Ray accepts but we do not.

    Other parts rely on the name and the prefix: the ingress polls the readiness of the application
    of that name, and the gate in the proxy answers `/hc`. With others the start would never end.
    """
    application = file.values["applications"][place[1]]
    faults = []
    for key, default, wanted in (("name", "default", APP_NAME), ("route_prefix", "/", "/")):
        if application.get(key, default) != wanted:
            given = repr(application[key]) if key in application else "not set"
            advice = "; `public_base_url` may have a path" if key == "route_prefix" else ""
            text = f"`{key}` is {given}, and must be {wanted!r}{advice}"
            faults.append(file.fault((*place[:2], key), text))
    if "args" not in application:
        return [*faults, file.fault(place, "`args` is missing")]
    if isinstance(application["args"], dict):  # anything else is refused by Ray's schema
        wrong = faults_of(AppArgs, file, place)
        faults += wrong or list(
            _scaling_faults(file, place, AppArgs.model_validate(application["args"]))
        )
    return faults


def _scaling_faults(file: ConfigFile, place: Place, args: AppArgs) -> Iterator[str]:
    """Yield what is wrong with the parts that stand beside `args` and belong to them."""
    application = file.values["applications"][place[1]]
    policy = application.get("autoscaling_policy")
    named = policy.get("policy_function") if isinstance(policy, dict) else None
    if args.is_scaled and named != POLICY_PATH:
        yield file.fault(
            (*place[:2], "autoscaling_policy"),
            "`max_replicas` has an effect only with `autoscaling_policy: {policy_function: "
            f'"{POLICY_PATH}"}}` beside `args`: add that, or remove `max_replicas`',
        )
    deployments = application.get("deployments")
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else ()):
        if isinstance(deployment, dict) and deployment.get("name") == INGRESS:
            try:
                read_live_settings(deployment.get("user_config"), args)
            except ValueError as exc:
                yield file.fault((*place[:2], "deployments", index, "user_config"), str(exc))


def ray_faults(file: ConfigFile) -> list[str]:
    """Compare the whole document with Serve's schema, which by itself ignores unknown keys."""
    from ray.serve.schema import ServeDeploySchema

    model: type[BaseModel] = ServeDeploySchema
    return faults_of(model, file)


def _start(file: ConfigFile, place: Place, env: Environment, environ: Mapping[str, str]) -> Start:
    document = dict(file.values)
    options = dict(document.get("http_options") or {})
    if environ.get("WORKER_PORT"):
        options["port"] = env.port
    if "host" in options and joined_cluster(environ) is None:
        options["host"] = listened_on(options["host"], ipv6=has_ipv6())
    host, port = options.get("host", DEFAULT_HOST), options.setdefault("port", DEFAULT_PORT)
    document["http_options"] = options
    application = document["applications"][place[1]]
    args = AppArgs.model_validate(application["args"])
    logging_config = document.get("logging_config") or {}
    return Start(
        document=document,
        app_name=application.get("name", "default"),
        args=args,
        env=env,
        host=host,
        port=port,
        metrics_port=args.metrics_port,
        cluster=joined_cluster(environ),
        is_json=str(logging_config.get("encoding", "TEXT")).upper() == "JSON",
    )


# --- the machine ----------------------------------------------------------------------------------


def _gpu_faults(start: Start, environ: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    if has_gpu(environ):
        return
    asking: list[tuple[Place, float]] = [
        (("pools", index, "num_gpus"), pool.num_gpus) for index, pool in enumerate(start.args.pools)
    ]
    asking.append((("preprocessor", "num_gpus"), start.args.preprocessor.num_gpus))
    for place, share in asking:
        if share > 0:
            yield (
                place,
                f"`num_gpus: {share:g}` asks for an NVIDIA GPU, and none is visible here "
                "(see `nvidia-smi` and CUDA_VISIBLE_DEVICES)",
            )


def _asks_for_gpu(args: AppArgs) -> bool:
    return args.preprocessor.num_gpus > 0 or any(pool.num_gpus > 0 for pool in args.pools)


def _placement_faults(start: Start, environ: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    """Yield why Ray would wait for ever for a node to run something on. A cluster of our own is
    this machine alone, and it has no labels.
    """
    args = start.args
    if not environ.get("RAY_OVERRIDE_LABELS"):
        labelled: list[tuple[Place, str, bool]] = [
            (("pools", index, "arch"), f"arch: {pool.arch}", pool.arch != "any")
            for index, pool in enumerate(args.pools)
        ]
        for name, stage in (("preprocessor", args.preprocessor), ("finisher", args.finisher)):
            selector = (name, "label_selector")
            labelled.append((selector, "label_selector", bool(stage.label_selector)))
        for place, text, is_asked in labelled:
            if is_asked:
                yield (
                    place,
                    f"`{text}` asks for a labelled node, and this start makes a cluster of this "
                    "machine alone, without labels: remove it, or name a cluster in RAY_ADDRESS",
                )
    if environ.get("RAY_OVERRIDE_RESOURCES"):
        return
    stages: list[PoolSettings | StageSettings] = [*args.pools, args.preprocessor, args.finisher]
    asked = args.ingress_cpus + sum(stage.replicas * stage.num_cpus for stage in stages)
    if asked > (there := cpus()):
        yield (
            (),
            f"all replicas together ask for {asked:g} CPUs, and this machine has {there}: lower "
            "`replicas` or `num_cpus`, which only reserve",
        )


def listened_on(host: str, *, ipv6: bool) -> str:
    """Return the address to listen on: `::` is both families, of which a machine may have one."""
    return "0.0.0.0" if host == "::" and not ipv6 else host


def _folder_faults(start: Start) -> Iterator[str]:
    """Yield why a working folder cannot be trusted."""
    try:
        check_folders(start.args, start.env)
    except FolderRefused as exc:
        yield str(exc)


def _port_faults(start: Start) -> Iterator[str]:
    remedy = "set WORKER_PORT or http_options.port to another one"
    yield from port_fault(start.host, start.port, remedy)
    if start.metrics_port:
        yield from port_fault("127.0.0.1", start.metrics_port, "set metrics_port to another one")
