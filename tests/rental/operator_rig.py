"""An operator on the segment of the tests: a home folder, the shipped files, and commands."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.rental.namespaces import OPERATOR, ROOT, Segment
from tests.rental.pod_cloud import PodCloud

BIN = Path(sys.executable).parent
POOLS = ("ampere", "ada")
ARCHS = (*POOLS, "blackwell")
GPU, SCARCE_GPU = "NVIDIA L4", "NVIDIA GeForce RTX 4090"  # that the fake has
FRAMES_PER_S = 6.0  # of each pool
INGRESS_KEY = "ingress-key-of-the-test"
STORE = "--object-store-memory=200000000"
HTTP_S, ANSWER_S = 60.0, 120.0

logger = logging.getLogger(__name__)

Values = dict[str, Any]


@dataclass
class Operator:
    """Runs commands in the operator's namespace. `file` is the cluster file."""

    segment: Segment
    cloud: PodCloud
    home: Path
    file: Path

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            self.segment.command(*words),
            env={
                "HOME": str(self.home),
                "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(self.home / "tmp"),
                "TERM": "dumb",
                "LANG": "C.UTF-8",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_UP_enable_autoscaler_v2": "1",
            },
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *words: str, deadline_s: float) -> str:
        """Run a command and return what it prints; it has to end with 0 in time."""
        begun = time.monotonic()
        process = self.popen(*words)
        try:
            printed, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            printed, _ = process.communicate()
            raise AssertionError(f"{words} took more than {deadline_s} s:\n{printed}") from None
        logger.info("%.1f s: %s", time.monotonic() - begun, " ".join(words)[:60])
        assert process.returncode == 0, f"{words} ended with {process.returncode}:\n{printed}"
        return printed

    def change(self, key: str, before: str, after: str) -> None:
        """Change the commands of a key of the cluster file."""
        values = yaml.safe_load(self.file.read_text())
        values[key] = [command.replace(before, after) for command in values[key]]
        self.file.write_text(yaml.safe_dump(values, sort_keys=False))

    def cluster(self, command: str, deadline_s: float) -> Values:
        """Run `lipsync cluster …` and return its result."""
        printed = self.run("lipsync", "cluster", command, str(self.file), "--json",
                           deadline_s=deadline_s)  # fmt: skip
        [line] = [line for line in printed.splitlines() if line.startswith('{"')]
        result: Values = json.loads(line)
        return result

    def in_cluster(self) -> set[str]:
        """Return the pods that are alive nodes of the cluster."""
        machines = self.cluster("status", ANSWER_S)["machines"]
        return {one["id"] for one in machines if one["in_cluster"]}

    def task(self, arch: str) -> list[str]:
        """Return a command that runs a task on a node of this architecture, and prints the node."""
        code = (
            "import os, ray; ray.init(address='auto', log_to_driver=False); "
            f"f = ray.remote(label_selector={{'musetalk/arch': '{arch}'}}, num_gpus=0.1)"
            "(lambda: os.uname().nodename); print('RAN', 'ON', ray.get(f.remote()))"
        )
        start = "set -a; . ~/ray.env; set +a; cd $LIPSYNC_HOME; RAY_AUTH_MODE=token"
        return ["ray", "exec", "--no-config-cache", str(self.file), f'{start} python -c "{code}"']

    def run_task(self, arch: str, deadline_s: float) -> str:
        """Run such a task, and return the host name of the node that it ran on."""
        printed = self.run(*self.task(arch), deadline_s=deadline_s)
        found = re.search(r"RAN ON (\S+)", printed)
        assert found, printed
        return found[1]

    def serve_status(self) -> str:
        """Return what Serve says about the application, for the message of a test that fails."""
        start = "set -a; . ~/ray.env; set +a; cd $LIPSYNC_HOME; RAY_AUTH_MODE=token"
        command = f"{start} serve status; tail -n 30 /tmp/ray/session_latest/logs/serve/*.log"
        return self.run("ray", "exec", "--no-config-cache", str(self.file), command,
                        deadline_s=ANSWER_S)  # fmt: skip

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to the application, on whichever pod the head is."""
        [head] = self.cloud.of_type("head")
        url = path if path.startswith("http") else f"http://{self.cloud.address(head)}:8000{path}"
        headers = {"X-Internal-API-Key": INGRESS_KEY}
        return self.segment.inside(
            lambda: httpx.request(
                method, url, headers=headers, timeout=HTTP_S, trust_env=False, **options
            )
        )


def operator(segment: Segment, cloud: PodCloud, folder: Path) -> Operator:
    """Give the operator a home with the files of the project, changed as little as possible."""
    home = folder / "home"
    (home / ".lipsync").mkdir(parents=True)
    (home / "tmp").mkdir()
    (home / ".lipsync" / "runpod.key").write_text(cloud.key)
    (home / ".lipsync" / "lipsync.env").write_text(f"INGRESS_API_KEY={INGRESS_KEY}\n")
    (folder / "ray.env").write_text(_environment())
    (folder / "serve.yaml").write_text(yaml.safe_dump(_serve_config()))
    file = folder / "runpod.yaml"
    file.write_text(yaml.safe_dump(_cluster_file(segment, cloud, folder), sort_keys=False))
    return Operator(segment, cloud, home, file)


def _environment() -> str:
    """Return cluster/ray.env with the folders of this computer, for nodes of two cores together."""
    text = (ROOT / "cluster" / "ray.env").read_text()
    return text.replace("/app/.venv/bin", str(BIN)).replace("/app", str(ROOT))


def _cluster_file(segment: Segment, cloud: PodCloud, folder: Path) -> Values:
    values: Values = yaml.safe_load((ROOT / "cluster" / "runpod.yaml").read_text())
    values["cluster_name"] = f"t{os.getpid()}"
    values["provider"]["base_url"] = cloud.url
    values["auth"]["ssh_private_key"] = str(segment.folder / "id_ed25519")
    types = values["available_node_types"]
    head = types["head"]
    head["resources"], head["labels"] = {"CPU": 8, "lipsync_state": 1}, {}
    values["available_node_types"] = {"head": head} | {arch: types[arch] for arch in ARCHS}
    for name, node_type in values["available_node_types"].items():
        node_type["node_config"]["gpus"] = [SCARCE_GPU if name == "blackwell" else GPU]
    mounts = values["file_mounts"]
    mounts["~/ray.env"] = str(folder / "ray.env")
    mounts["~/serve_config.cluster.yaml"] = str(folder / "serve.yaml")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        values[key] = [
            command.replace("--disable-usage-stats", f"--disable-usage-stats {STORE}")
            for command in values[key]
        ]
    return values


def _serve_config() -> Values:
    """Return the shipped configuration, with an engine that needs neither GPU nor weights."""
    values: Values = yaml.safe_load((ROOT / "serve_config.cluster.yaml").read_text())
    [application] = values["applications"]
    application["import_path"] = "tests.cluster.stages:build_app"
    args = application["args"]
    args["engine"], args["landmarks"] = "warp", "mesh"
    args["pools"] = [_pool(pool) for pool in args["pools"] if pool["name"] in POOLS]
    for stage in ("preprocessor", "finisher"):
        args[stage] = {"replicas": 1, "num_cpus": 0.25, "threads": 1}
    # Machines have only these folders to themselves.
    args |= {"state_dir": "/root/state", "result_dir": "/root/results", "work_dir": "/root/work"}
    args["inputs"] = {"allowed_hosts": [OPERATOR]}
    args["scaling"] |= {"drain_s": 5.0, "load_s": 5.0, "job_frames": 150, "idle_s": 600.0}
    return values


def _pool(pool: Values) -> Values:
    own = copy.deepcopy(pool) | {"max_replicas": 1, "frames_per_s": FRAMES_PER_S}
    own |= {"device": "cpu", "dtype": "float32", "threads": 1, "speedup": "none"}
    return own
