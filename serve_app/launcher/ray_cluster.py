"""Ray and Serve for one start: begin or join a cluster, deploy, poll, end.

Without RAY_ADDRESS (or with `local`) the cluster is the launcher's own: it is this machine alone,
on the loopback, with Ray's token. Otherwise the named cluster is joined. Its environment belongs to
its operator, so what the replicas need is sent along as a runtime environment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_app.config.settings import cors_origins
from serve_app.launcher.checks import Start, joined_cluster
from serve_app.launcher.state_node import STATE_RESOURCE, StateNodeUnknown, has_state_node

logger = logging.getLogger("serve_app.launch")

ROOT = Path(__file__).resolve().parents[2]
PROXY_MIDDLEWARES = "serve_app.gate.middleware:proxy_middlewares"
NAMESPACE = "serve"
MAX_PORT = 65535
REACHED_S = 3.0
STARTS = 2
NOT_UP = "timed out during startup"  # how Ray says that its raylet ended, or never registered
END_S = 10.0
HANDLE_END_S = 2.0  # milliseconds, unless Serve hangs


def environment_before_ray(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have to be set before Python imports Ray, which reads them then.

    A variable that is set already is left as it is.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",  # no report home
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY_MIDDLEWARES,
        # A replica that hangs would keep its GPU, or the state, as long as a draining one may.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_DEDUP_LOGS": "0",  # or lines of different jobs are folded into one
        "RAY_ENABLE_AUTO_CONNECT": "0",  # or what is called by mistake after Ray's end starts it
    }
    if joined_cluster(environ) is None:
        wanted |= {
            "RAY_AUTH_MODE": "token",
            # Despite its name, what makes Ray take 127.0.0.1 for this machine's address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Ray's handler of SIGTERM, in place while Ray starts, then ends at once.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
    path = [str(ROOT), *filter(None, environ.get("PYTHONPATH", "").split(":"))]
    chosen = {name: value for name, value in wanted.items() if name not in environ}
    return chosen | {"PYTHONPATH": ":".join(dict.fromkeys(path))}


def environment_of_replicas(start: Start) -> dict[str, str]:
    """Return the variables that describe the start to every replica."""
    return {
        "WORKER_PORT": str(start.port),
        "LIPSYNC_HOST": start.reached_at,
        "LIPSYNC_LOG_ENCODING": "JSON" if start.is_json else "TEXT",
        # The proxies do not read the configuration.
        "LIPSYNC_CORS_ORIGINS": ",".join(cors_origins(start.args, start.env)),
    }


class StartFailed(Exception):
    """The application does not start; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class State:
    """What Serve reports about the applications of one start."""

    is_running: bool
    failure: str | None
    unhealthy: tuple[str, ...]
    waiting: tuple[str, ...] = ()  # deployments that lack a replica


class Cluster:
    """One start's Ray and Serve."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._apps = [app.get("name", "default") for app in start.document["applications"]]
        self._is_own = start.cluster is None
        self._has_deployed = False
        self._handle: Any = None  # of the ingress

    def begin(self) -> None:
        """Start or join Ray.

        Raises:
            StartFailed: it cannot be started, the cluster does not exist, or it does not say which
                of its nodes keeps the job registry.
        """
        import ray

        if self._start.cluster is not None:
            require_answer(self._start.cluster)
        options: dict[str, Any] = {}
        if self._is_own:
            options["_metrics_export_port"] = self._start.metrics_port
            options["resources"] = {STATE_RESOURCE: 1}
        for start in range(1, STARTS + 1):
            children = _children()
            try:
                ray.init(
                    address=self._start.cluster or "local",
                    namespace=NAMESPACE,
                    configure_logging=True,
                    logging_level=logging.WARNING,
                    **options,
                )
                break
            except Exception as exc:
                why = one_line(str(exc))
                if not self._is_own or NOT_UP not in why or start == STARTS:
                    raise StartFailed(f"Ray cannot be started or joined: {why}") from exc
                logger.warning("Ray did not come up and is started once more: %s", why)
                _end_processes(_children() - children)
        self._require_state_node(ray.nodes())

    def _require_state_node(self, nodes: list[dict[str, Any]]) -> None:
        try:
            is_marked = has_state_node(nodes)
        except StateNodeUnknown as exc:
            raise StartFailed(str(exc)) from exc
        if not is_marked:
            logger.warning(
                "the node of this cluster does not have the resource %s, which it needs before "
                "other nodes join",
                STATE_RESOURCE,
            )

    def deploy(self) -> None:
        """Start Serve, and hand it the configuration.

        Raises:
            StartFailed: Serve refuses it.
        """
        from ray.serve._private.api import serve_start
        from ray.serve.config import gRPCOptions
        from ray.serve.schema import ServeDeploySchema

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        document = self._start.document
        if not self._is_own:
            document = _with_environment(document, environment_of_replicas(self._start))
        config = ServeDeploySchema.model_validate(document)
        try:
            client = serve_start(
                http_options=config.http_options.model_dump(),
                grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
                proxy_location=config.proxy_location,
                controller_options=config.controller_options,
                global_logging_config=config.logging_config,
            )
            self._has_deployed = True
            client.deploy_apps(config, _blocking=False)
        except Exception as exc:
            raise StartFailed(f"Serve cannot be started: {one_line(str(exc))}") from exc

    def state(self) -> State:
        """Return what Serve's controller reports. Raises what Ray raises if the cluster is gone."""
        from ray import serve

        found = serve.status().applications
        apps = [found[name] for name in self._apps if name in found]
        failure = None
        unhealthy, waiting = [], []
        for app in apps:
            for name, deployment in app.deployments.items():
                if deployment.status.value != "HEALTHY":
                    waiting.append(name)
                if deployment.status.value in ("DEPLOY_FAILED", "UNHEALTHY"):
                    unhealthy.append(name)
                    failure = failure or f"{name} failed: {last_error(deployment.message)}"
            if app.status.value == "DEPLOY_FAILED":
                failure = failure or last_error(app.message)
        is_running = len(apps) == len(self._apps) and all(
            app.status.value == "RUNNING" for app in apps
        )
        return State(is_running, failure, tuple(unhealthy), tuple(waiting))

    def ask(self, method: str) -> Any:
        """Call a method of the ingress; return the response without waiting for it."""
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_app_handle(self._start.app_name)
        return getattr(self._handle, method).remote()

    def end(self) -> None:
        """Stop what `begin` and `deploy` started. It is harmless if that is gone."""
        import ray
        from ray import serve

        if ray.is_initialized():
            self._end_handle()
            if not self._is_own and self._has_deployed:
                with contextlib.suppress(Exception):
                    self._leave(serve)
            ray.shutdown(wait_for_processes=self._is_own)

    def _end_handle(self) -> None:
        """End what Serve does behind a handle: reports to its controller, now and then.

        With Ray gone, the next report would start a Ray of its own, and this process would wait.
        """
        if self._handle is not None:
            ending = threading.Thread(target=_shut_down, args=(self._handle,), daemon=True)
            ending.start()
            ending.join(HANDLE_END_S)

    def _leave(self, serve: Any) -> None:
        """Remove our applications from a cluster that goes on, and Serve if it runs no others."""
        if set(serve.status().applications) <= set(self._apps):
            serve.shutdown()
            return
        for name in self._apps:
            serve.delete(name)

    @property
    def logs(self) -> str:
        """The folder that Ray logs into on this machine."""
        import ray

        node = ray._private.worker._global_node
        return "" if node is None else str(node.get_logs_dir_path())


def _shut_down(handle: Any) -> None:
    with contextlib.suppress(Exception):  # Serve may be gone
        handle.shutdown()


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end_processes(processes: set[psutil.Process]) -> None:
    """End what a failed start of Ray has left running. Ray itself would do so at exit only."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_S)


def require_answer(address: str) -> None:
    """Check that something listens at the address of a cluster. Ray itself tries for two minutes.

    Raises:
        StartFailed: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or something that Ray refuses itself
    try:
        if int(port) > MAX_PORT:  # the C library would take the remainder
            raise OSError(errno.EINVAL, "there is no such port")
        socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
    except OSError as exc:
        why = getattr(exc, "strerror", None) or "no answer"
        raise StartFailed(
            f"nothing answers at RAY_ADDRESS, {address} ({why}): start Ray there, or unset "
            "RAY_ADDRESS for a cluster of this machine alone"
        ) from exc


def _with_environment(document: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """Return a copy of the configuration whose applications run with `variables`."""
    applications = []
    for application in document["applications"]:
        runtime = dict(application.get("runtime_env") or {})
        runtime["env_vars"] = variables | dict(runtime.get("env_vars") or {})
        applications.append(application | {"runtime_env": runtime})
    return document | {"applications": applications}


_RAISED = re.compile(r"^[A-Za-z_][\w.]*[a-z]\w*: (?P<text>\S.*)$")


def last_error(message: str) -> str:
    """Return the sentence of the exception that a message of Serve ends with.

    Serve's messages hold whole traces of one process within another's; the innermost exception
    comes last, and ours say what to do.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        found = _RAISED.match(line)
        if found and not line.startswith(("ray::", "File ")):
            return found["text"]
    return lines[-1] if lines else "Serve does not say why"


def one_line(text: str) -> str:
    """Return the first paragraph of a message, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())[:500]
