"""What is looked at before Ray is started, so that a start that cannot succeed ends at once.

1. the configuration: every key and value of the file, ours and Ray's
2. the environment: numbers, storage that is set in part, polling without a store to upload to
3. the machine: weights, ports, a GPU, room for every replica

Every fault is a sentence. Light to import; only `ray_faults` and `cpus` import Ray.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from musetalk_pipeline.faces.dwpose import WEIGHTS
from musetalk_pipeline.networks.files import missing_files
from musetalk_pipeline.weights.published import published
from serve_app.config.config_file import (
    ConfigFile,
    ConfigInvalid,
    Place,
    faults_of,
    read_config_file,
)
from serve_app.config.environment import Environment, EnvironmentInvalid, read_environment
from serve_app.config.folders import check_folders
from serve_app.config.settings import APP_NAME, AppArgs, PoolSettings, StageSettings
from serve_app.files import FolderRefused
from serve_app.net.addresses import AddressPolicy

IMPORT_PATH = "serve_app.app:build_app"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000  # Serve's own
SHARED_STORE = ("B2_KEY_ID", "B2_APP_KEY", "B2_BUCKET_NAME")


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started, checked.

    `document` is the configuration as Serve takes it, with the port that is listened on.
    `cluster` is the address of the Ray cluster that is joined; None: one of our own, for this
    machine alone.
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
        """An address of this machine that is listened on."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host


def joined_cluster(environ: Mapping[str, str]) -> str | None:
    """Return the cluster that RAY_ADDRESS names; None if it is unset or `local`."""
    address = environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_start(path: Path, environ: Mapping[str, str] = os.environ) -> Start:
    """Read the configuration and look at everything that the start needs.

    Raises:
        ConfigInvalid: something is wrong; all that could be found out is said at once.
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
    start = _start(file, place, env, environ)
    lacking = [*_machine_faults(start), *_placement_faults(start, environ)]
    faults = [file.fault((*place, *below), text) for below, text in lacking]
    faults += _port_faults(start)
    faults += _folder_faults(start)
    if faults:
        raise ConfigInvalid(*faults)
    return start


def _our_arguments(file: ConfigFile) -> Place | None:
    """Return where the `args` of our application stand in the document, None if nowhere."""
    applications = file.values.get("applications")
    for index, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH:
            return "applications", index, "args"
    return None


def _application_faults(file: ConfigFile, place: Place) -> list[str]:
    """Return what is wrong with our application: its arguments, and what Ray takes but we do not.

    Both the name and the prefix are known elsewhere: the ingress asks for the readiness of that
    application, and the proxy's gate for `/hc`. With others the start would never end.
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
    if isinstance(application["args"], dict):
        faults += faults_of(AppArgs, file, place)
    return faults  # anything but a mapping is refused by Ray's schema


def ray_faults(file: ConfigFile) -> list[str]:
    """Compare the whole document with Serve's schema, which lets unknown keys pass by itself."""
    from ray.serve.schema import ServeDeploySchema

    model: type[BaseModel] = ServeDeploySchema
    return faults_of(model, file)


def _start(file: ConfigFile, place: Place, env: Environment, environ: Mapping[str, str]) -> Start:
    document = dict(file.values)
    options = dict(document.get("http_options") or {})
    if environ.get("WORKER_PORT"):
        options["port"] = env.port
    if options.get("host") == "::" and joined_cluster(environ) is None and not has_ipv6():
        options["host"] = "0.0.0.0"  # both families were asked for, and there is one
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


# --- the environment ------------------------------------------------------------------------------


def environment_faults(env: Environment) -> Iterator[str]:
    """Yield a sentence for each combination of variables that must not be started with."""
    values = (env.b2_key_id, env.b2_app_key, env.b2_bucket)
    given = [name for name, value in zip(SHARED_STORE, values, strict=True) if value]
    missing = [name for name in SHARED_STORE if name not in given]
    if given and missing:
        yield (
            f"{_listed(given)} set, but {_listed(missing)} not: set all three to upload to B2, "
            "or none of them to keep outputs on this machine"
        )
    yield from _unusable_values(env)
    if env.orchestrator_url is not None or env.mode != "queue":
        from serve_app.fleet.polling import polling_rules  # takes a second to import
        from serve_app.fleet.pushed_reports import report_rules

        try:
            polling_rules(env)
            report_rules(env)
        except EnvironmentInvalid as exc:
            yield str(exc)
    if env.mode != "queue" and not given and not env.allow_local_store:
        yield (
            "this worker is to poll an orchestrator, but its outputs would stay on this "
            f"machine: set {', '.join(SHARED_STORE)}, or ALLOW_LOCAL_STORE=true if "
            "whoever reads them can reach this worker, by the `public_base_url` that you set"
        )


def _unusable_values(env: Environment) -> Iterator[str]:
    try:
        AddressPolicy(frozenset(env.allowed_hosts))
    except ValueError as exc:
        yield str(exc)
    if env.webhook_secret is not None:
        from serve_app.webhooks.sender import signing_key  # takes a second to import

        try:
            signing_key(env.webhook_secret)
        except ValueError as exc:
            yield str(exc).replace("the webhook secret", "WEBHOOK_SECRET")


def _listed(names: list[str]) -> str:
    return " and ".join(names) + (" is" if len(names) == 1 else " are")


# --- the machine ----------------------------------------------------------------------------------


def _machine_faults(start: Start) -> Iterator[tuple[Place, str]]:
    """Yield what this machine lacks, with the place in `args` that asks for it."""
    yield from _weight_faults(start.args, start.env)
    if start.cluster is None and not has_gpu(os.environ):
        asking: list[tuple[Place, float]] = [
            (("pools", index, "num_gpus"), pool.num_gpus)
            for index, pool in enumerate(start.args.pools)
        ]
        asking.append((("preprocessor", "num_gpus"), start.args.preprocessor.num_gpus))
        for place, share in asking:
            if share > 0:
                yield (
                    place,
                    (
                        f"`num_gpus: {share:g}` asks for an NVIDIA GPU, and none is visible here "
                        "(see `nvidia-smi` and CUDA_VISIBLE_DEVICES)"
                    ),
                )


def _placement_faults(start: Start, environ: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    """Yield why Ray would wait for ever for a place to run something: on a cluster of our own, this
    machine is all there is, and it has no labels.
    """
    if start.cluster is not None:
        return
    args = start.args
    if not environ.get("RAY_OVERRIDE_LABELS"):
        labelled: list[tuple[Place, str, bool]] = [
            (("pools", index, "arch"), f"arch: {pool.arch}", pool.arch != "cpu")
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
                    "machine alone, without labels: leave it out, or name a cluster in RAY_ADDRESS",
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


def cpus() -> int:
    """Return how many CPUs Ray will find here; a container may have fewer than its machine."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())


def _folder_faults(start: Start) -> Iterator[str]:
    """Yield why a working folder cannot be trusted, if the replicas run on this machine."""
    if start.cluster is not None:
        return
    try:
        check_folders(start.args, start.env)
    except FolderRefused as exc:
        yield str(exc)


def _weight_faults(args: AppArgs, env: Environment) -> Iterator[tuple[Place, str]]:
    for name, path in (
        ("MUSETALK_UNET_MODEL_PATH", env.unet_path),
        ("MUSETALK_UNET_CONFIG", env.unet_config),
    ):
        if path is not None and not path.is_file():
            yield ("engine",), f"{name} names {path}, and there is no such file"
    if args.engine == "musetalk":
        missing, _ = missing_files(
            args.models_dir,
            args.version,
            own_unet=env.unet_path is not None,
            own_config=env.unet_config is not None,
        )
        if missing:
            yield (
                ("engine",),
                f"`engine: musetalk` needs weights, and {args.models_dir} lacks "
                f"{', '.join(missing)}; {_fetch(args)} fetches them, and `engine: warp` needs none",
            )
    yield from _detector_faults(args)


def _fetch(args: AppArgs, *options: str) -> str:
    """Return the command that fetches the published weights to where these arguments look."""
    if args.version != "v15":
        options = (*options, "--version", args.version)
    if args.models_dir != Path("models"):
        options = (*options, "--models", str(args.models_dir))
    if not options:
        return "`make weights`"
    return f"`{sys.executable} -m musetalk_pipeline.weights fetch {' '.join(options)}`"


def _detector_faults(args: AppArgs) -> Iterator[tuple[Place, str]]:
    wanted: list[tuple[str, str, Path, str]] = []
    if args.landmarks == "mmpose":
        wanted.append(("landmarks", "mmpose", WEIGHTS, f"{_fetch(args)} fetches it"))
        if importlib.util.find_spec("mmpose") is None:
            yield (
                ("landmarks",),
                "`landmarks: mmpose` needs the mmpose stack: `make mm` installs it",
            )
    elif args.landmarks == "onnx":
        source, target = (args.models_dir / WEIGHTS.with_suffix(end) for end in (".pth", ".onnx"))
        command = f"{sys.executable} -m musetalk_pipeline.faces.onnx export {source} {target}"
        export = f"`{command}` makes it"
        wanted.append(("landmarks", "onnx", WEIGHTS.with_suffix(".onnx"), export))
    if args.face_presence == "s3fd":
        fetch = f"{_fetch(args, '--s3fd')} fetches it"
        s3fd = Path(published(args.version, with_s3fd=True)[-1].path)
        wanted.append(("face_presence", "s3fd", s3fd, fetch))
    for key, value, path, remedy in wanted:
        if not (args.models_dir / path).is_file():
            yield (key,), f"`{key}: {value}` needs {args.models_dir / path}; {remedy}"


def has_gpu(environ: Mapping[str, str]) -> bool:
    """Say whether an NVIDIA GPU is visible, without asking CUDA, which takes seconds."""
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def has_ipv6() -> bool:
    """Say whether this machine has IPv6; some containers do not."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _port_faults(start: Start) -> Iterator[str]:
    if start.cluster is not None:
        return  # they are opened on the cluster's machines
    remedy = "set WORKER_PORT or http_options.port to another one"
    yield from port_fault(start.host, start.port, remedy)
    if start.metrics_port:
        yield from port_fault("127.0.0.1", start.metrics_port, "set metrics_port to another one")


def port_fault(host: str, port: int, remedy: str) -> Iterator[str]:
    """Yield a sentence if nothing can listen on `port` of `host` now."""
    if not 0 < port < 1 << 16:
        yield f"port {port} is out of range: {remedy}"
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                yield f"port {port} is taken{_taken_by(port)}: {remedy}"
            elif exc.errno == errno.EACCES:
                yield f"{host}:{port} cannot be listened on ({exc.strerror}): {remedy}"
            else:
                yield (
                    f"{host}:{port} cannot be listened on ({exc.strerror}): "
                    "set http_options.host to an address of this machine"
                )


def _taken_by(port: int) -> str:
    """Name the process that listens on `port`, if this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                if connection.pid is None:
                    break
                command = " ".join(psutil.Process(connection.pid).cmdline())[:80]
                return f" by process {connection.pid} ({command})"
    return ""
