"""Ray's autoscaler starts the node that a pool lacks, and takes it back.

Its provider for tests starts nodes as processes of this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

from demo.application import free_port
from tests.cluster.conftest import Media
from tests.cluster.machines import STATE, machines, wait_until
from tests.decoding import frames_of

pytestmark = pytest.mark.slow

ARCH = "musetalk/arch"
# Ray's reader asks for all of these, and its provider for tests uses none of them.
UNUSED: dict[str, Any] = {
    "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
    "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
    "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
}  # fmt: skip
ARCHS = ("ada", "hopper")
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
POOLS = [
    {
        "name": name,
        "arch": name,
        "replicas": 0,
        "max_replicas": 1,
        "num_gpus": 1.0,
        "device": "cpu",
        "frames_per_s": 25.0,
        "usd_per_hour": price,
    }
    for name, price in zip(ARCHS, (0.1, 9.0), strict=True)
]

SCALING = {
    "awaits_nodes": True,
    "drain_s": 30.0,
    "load_s": 1.0,
    "job_frames": 25,
    "idle_loads": 1.0,
    "idle_s": 3.0,
}


def autoscaling(gcs_port: int) -> dict[str, Any]:
    """Return a cluster that may have one node of each architecture beside its head."""
    return {
        **UNUSED,
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": f"127.0.0.1:{gcs_port}",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            **{
                arch: {
                    "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 200 << 20},
                    "labels": {ARCH: arch},
                    "node_config": {},
                    "max_workers": 1,
                }
                for arch in ARCHS
            },
        },
    }


def test_work_for_a_pool_without_a_node_starts_one_with_its_label(
    media: Media, tmp_path: Path
) -> None:
    """Finding 5: a pool at 0 never started. Here the autoscaler has to start its node first."""
    gcs_port, config = free_port("127.0.0.1"), tmp_path / "cluster.yaml"
    config.write_text(yaml.safe_dump(autoscaling(gcs_port)))
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # the first version ignores labels
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Of the nodes that it starts.
        "MUSETALK_WORKDIR": str(tmp_path / "started" / "work"),
        "MUSETALK_RESULT_DIR": str(tmp_path / "started" / "results"),
    }
    (tmp_path / "started").mkdir()
    with machines(tmp_path / "nodes", **env) as cluster:
        cluster.add(
            "head", resources=STATE, gcs_server_port=gcs_port, autoscaling_config=str(config)
        )
        cluster.deploy(
            pools=POOLS,
            scaling=SCALING,
        )
        cluster.wait_ready()
        assert cluster.command("labels") == [{}]
        assert cluster.client.post("/v1/avatar/jobs", json=media.job("started")).status_code == 202
        job = cluster.wait_for("started", "succeeded", "failed")
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
        assert len(frames_of(cluster.output(job, tmp_path))) == 150
        assert {ARCH: "ada"} in cluster.command("labels", dead=True)
        wait_until(lambda: cluster.command("labels") == [{}], "the node stays although it is idle")
        assert {ARCH: "hopper"} not in cluster.command("labels", dead=True)
