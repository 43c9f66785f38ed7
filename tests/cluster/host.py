"""A Ray cluster of several nodes on this machine, in a process of its own.

It takes one command in JSON on each line of its standard input and answers each with one line. It
is a process of its own because Ray reads its environment when Python imports it, and because the
driver of a cluster cannot change the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema

from tests.cluster.names import NODE

# A node that vanishes is noticed within some three seconds instead of half a minute.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
STORE_BYTES = 200 << 20  # of each node's object store


class Host:
    """The cluster. Each public method is a command."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}
        self._taking: dict[str, threading.Timer] = {}

    def add(self, name: str, folder: str, **options: Any) -> str:
        """Add a node with folders of its own; the first one is the head. Return its id."""
        is_head = not self._nodes
        if is_head:
            options["_system_config"] = HEALTH_CHECKS
        own = Path(folder)
        for kind in ("temp", "work", "results"):
            (own / kind).mkdir(parents=True, exist_ok=True)
        variables = {
            NODE: name,
            "TMPDIR": str(own / "temp"),
            "MUSETALK_WORKDIR": str(own / "work"),
            "MUSETALK_RESULT_DIR": str(own / "results"),
        }
        node = self._cluster.add_node(
            env_vars=variables, object_store_memory=STORE_BYTES, include_dashboard=False, **options
        )
        self._nodes[name] = node
        if is_head:
            ray.init(
                address=self._cluster.address,
                namespace="serve",
                log_to_driver=True,
                logging_level=logging.WARNING,
            )
        return str(node.node_id)

    def address(self) -> str:
        """Return the address at which the cluster is joined."""
        return str(self._cluster.address)

    def remove(self, name: str) -> None:
        """Take a node away at once, with every process on it."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def drain(self, name: str, grace_s: float) -> None:
        """Announce that a node goes, as a cloud does with a spot machine, and take it then."""
        until_ms = int((time.time() + grace_s) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client = GcsClient(address=self._cluster.address)
        is_accepted, why = client.drain_node(
            str(self._nodes[name].node_id), reason, "the machine is taken back", until_ms
        )
        assert is_accepted, why
        self._taking[name] = threading.Timer(grace_s, self.remove, [name])
        self._taking[name].start()

    def taken(self, name: str) -> None:
        """Return when a node that was drained is gone."""
        self._taking.pop(name).join()

    def deploy(self, document: dict[str, Any]) -> None:
        """Hand a configuration to Serve, as `serve deploy` does; do not wait for it."""
        config = ServeDeploySchema.model_validate(document)
        client = serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            global_logging_config=config.logging_config,
        )
        client.deploy_apps(config, _blocking=False)

    def delete(self) -> None:
        """Delete the application, and return when it is gone."""
        serve.delete("lipsync")

    def status(self) -> dict[str, Any]:
        """Return the state of the application and of its deployments; empty if there is none."""
        application = serve.status().applications.get("lipsync")
        if application is None:
            return {}
        return {
            "status": application.status.value,
            "message": application.message,
            "deployments": {
                name: dict(deployment.replica_states)
                for name, deployment in application.deployments.items()
            },
        }

    def held_bytes(self) -> int:
        """Return what the object stores of all nodes hold."""
        total, free = ray.cluster_resources(), ray.available_resources()
        return round(total["object_store_memory"] - free.get("object_store_memory", 0.0))

    def shutdown(self) -> None:
        """End Serve and every node."""
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to the log
    host = Host()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"result": getattr(host, command.pop("do"))(**command)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    host.shutdown()


if __name__ == "__main__":
    main()
