"""What lives on the head, seen from the head: `python -m cluster.ray_up.after_up`.

`ray up` ends with 0 as soon as Ray has been started on the head. If the monitor then dies, because
a module is missing or the file cannot be used there, nothing says so and no worker ever comes. This
prints one line of JSON, a `HeadReport`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MARK = "lipsync-head-report "
LOGS = Path("/tmp/ray/session_latest/logs")
ERROR_LINES = 3


class NodeReport(BaseModel):
    """A node that Ray has."""

    model_config = ConfigDict(frozen=True)

    node_type: str
    instance_id: str
    is_alive: bool


class HeadReport(BaseModel):
    """What the head has. `monitor_error` is empty while the monitor lives.

    `pending` are the machines that are being started, by node type, and `failures` sentences about
    launches that failed lately.
    """

    model_config = ConfigDict(frozen=True)

    monitor_error: str
    nodes: tuple[NodeReport, ...]
    pending: dict[str, int]
    failures: tuple[str, ...]


def main() -> int:
    """Print the report."""
    print(MARK + look().model_dump_json(), flush=True)
    return 0


def look() -> HeadReport:
    """Return what lives on this head."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    pending: dict[str, int] = {}
    for launch in status.pending_launches:
        pending[launch.ray_node_type_name] = launch.count
    for node in status.pending_nodes:
        pending[node.ray_node_type_name] = pending.get(node.ray_node_type_name, 0) + 1
    nodes = [
        NodeReport(
            node_type=node.ray_node_type_name, instance_id=node.instance_id, is_alive=is_alive
        )
        for group, is_alive in (
            (status.active_nodes, True),
            (status.idle_nodes, True),
            (status.failed_nodes, False),
        )
        for node in group
    ]
    return HeadReport(
        monitor_error=monitor_error(),
        nodes=tuple(nodes),
        pending=pending,
        failures=tuple(
            f"{one.ray_node_type_name}: {one.details}" for one in status.failed_launches
        ),
    )


def monitor_error() -> str:
    """Return why no monitor lives on this machine; nothing if one does."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("autoscaler/v2/monitor.py") for word in words):
            return ""
    try:
        lines = (LOGS / "monitor.err").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return "\n".join(lines[-ERROR_LINES:]) or "The monitor is not running."


if __name__ == "__main__":
    sys.exit(main())
