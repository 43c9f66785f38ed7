"""The side of the tests: a cluster of several nodes, and the application that runs on it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from demo.application import session_processes
from demo.application import stop as stop_session
from serve_app.config.ports import free_port
from serve_app.launcher.ray_cluster import PROXY_MIDDLEWARES
from tests.cluster.names import NODE
from tests.serve.running import JOB_S, NOT_FOR_TESTS, ROOT, RunningApp, config_document

IMPORT_PATH = "tests.cluster.stages:build_app"
STATE = {"lipsync_state": 1}
NOTICE_S = 30.0  # in which a node that goes on notices that it was given up
QUICK_CHECKS = {"health_check_period_s": 1.0, "health_check_timeout_s": 3.0}


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Wait until something is so; `what` says what is wrong if it never is."""
    deadline = time.monotonic() + JOB_S
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Machines(RunningApp):
    """A cluster, and the application on it. Every node has folders of its own in `folder`.

    `nodes`: the names of the nodes that are there.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        ray_folder: Path,
        process: subprocess.Popen[bytes],
        environment: dict[str, str],
    ) -> None:
        super().__init__(folder, port, ray_folder, process)
        self.environment = environment
        self.nodes: set[str] = set()

    def command(self, do: str, **values: Any) -> Any:
        """Let the cluster do something, and return the answer."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the cluster is gone:\n" + "\n".join(self.log[-40:])
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def add(self, name: str, **options: Any) -> None:
        """Add a node. `options` are those of `Cluster.add_node`."""
        options = {"num_cpus": 4, **options}
        self.command("add", name=name, folder=str(self.folder / name), **options)
        self.nodes.add(name)

    def remove(self, name: str) -> None:
        """Take a node away with all of its processes. Its folders go too, as its disk would."""
        self.nodes.discard(name)
        self.command("remove", name=name)

    def cut_off(self, name: str) -> None:
        """Stop every process of a node. To all others that looks like a network that is down."""
        for process in self._processes_of(name):
            process.suspend()

    def reconnect(self, name: str) -> None:
        """Let a node that was cut off go on until it notices that it was given up, and remove it.

        Ray ends such a node within seconds, but has been seen to leave one running. Its replicas
        serve nobody, since the cluster does not count the node any more.
        """
        for process in self._processes_of(name):
            process.resume()
        deadline = time.monotonic() + NOTICE_S
        while self._replicas_on(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.remove(name)
        for process in self._processes_of(name):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _processes_of(self, name: str) -> list[psutil.Process]:
        found = []
        for process in session_processes(self.ray_folder):
            with contextlib.suppress(psutil.Error):
                if self.node_of_process(process) == name:
                    found.append(process)
        return found

    def _replicas_on(self, name: str) -> list[str]:
        titles = []
        for process in self._processes_of(name):
            with contextlib.suppress(psutil.Error):
                titles += [part for part in process.cmdline() if "ServeReplica" in part]
        return titles

    def deploy(self, import_path: str = IMPORT_PATH, **args: Any) -> None:
        """Deploy the application with `args` over the project's own configuration."""
        document = config_document(self.folder, self.port, args)
        application = document["applications"][0]
        del application["args"]["work_dir"], application["args"]["result_dir"]  # each node has one
        application["import_path"] = import_path
        pools = [f"Generator-{pool['name']}" for pool in application["args"]["pools"]]
        application["deployments"] = [
            {"name": name, **QUICK_CHECKS} for name in ("Preprocessor", "Finisher", *pools)
        ]
        self.command("deploy", document=document)

    def config(self, **args: Any) -> Path:
        """Write a configuration for the launcher, and return its path."""
        document = config_document(self.folder, self.port, args)
        del document["applications"][0]["args"]["work_dir"]
        del document["applications"][0]["args"]["result_dir"]
        path = self.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's state; nothing if there is no such job, or no ingress at the moment."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.client.get(f"/v1/avatar/jobs/{job_id}")
            if answer.status_code == 200:
                job: dict[str, Any] = answer.json()
                return job
        return {}

    def wait_running(self, *deployments: str) -> None:
        """Wait until each of these has a replica that runs, and no other."""

        def run() -> bool:
            found = self.command("status")["deployments"]
            return all(found.get(name) == {"RUNNING": 1} for name in deployments)

        wait_until(run, f"{deployments} do not run")

    def node_of(self, deployment: str) -> str:
        """Return the name of the node that a deployment's only replica runs on."""
        [replica] = self.replicas(deployment)
        return self.node_of_process(replica)

    def node_of_process(self, process: psutil.Process) -> str:
        """Return the name of the node that a process belongs to."""
        return process.environ().get(NODE, "")

    @property
    def scratch(self) -> list[str]:
        """The attempts whose files are still on a node that is there."""
        found = []
        for node in sorted(self.nodes):
            with contextlib.suppress(FileNotFoundError):
                jobs = (self.folder / node / "work" / "jobs").iterdir()
                found += [f"{node}/{path.name}" for path in jobs]
        return found

    def notes(self, node: str, file: str) -> list[str]:
        """Return the lines that replicas have written into a file of their node."""
        path = self.folder / node / "temp" / file
        return path.read_text().splitlines() if path.exists() else []

    def results(self, node: str) -> list[str]:
        """Return the names of the files in a node's folder for results."""
        return sorted(path.name for path in (self.folder / node / "results").iterdir())


@contextlib.contextmanager
def machines(folder: Path, **env: str) -> Iterator[Machines]:
    """Start a cluster without nodes, and leave nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    ray_folder = Path(tempfile.mkdtemp(prefix="ray"))  # Ray's sockets are below it: a short path
    outer = {name: value for name, value in os.environ.items() if name not in NOT_FOR_TESTS}
    outer.pop("RAY_ADDRESS", None)
    port = free_port("127.0.0.1")
    environment = outer | {
        "RAY_TMPDIR": str(ray_folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray take 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY_MIDDLEWARES,
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "PYTHONPATH": str(ROOT),
        "WORKER_PORT": str(port),
        **env,
    }
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.host"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        cluster = Machines(folder, port, ray_folder, process, environment)
        yield cluster
        cluster.client.close()
    finally:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        stop_session(process, ray_folder)
        process.stdout.close()


@contextlib.contextmanager
def launcher(cluster: Machines, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `lipsync serve` in the cluster until the block ends; its output is in `launch.log`."""
    environment = cluster.environment | {"RAY_ADDRESS": cluster.command("address")}
    with (cluster.folder / "launch.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lipsync", "serve", str(config)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
