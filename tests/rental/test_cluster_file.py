"""Cluster files: the five that are shipped, and what is refused before anything is rented."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_up.cluster_file import ClusterFileInvalid, check, read_cluster_file
from cluster.ray_up.node_provider import RentedNodeProvider
from serve_app.launcher.checks import plan_start

ROOT = Path(__file__).resolve().parents[2]
VENDORS = ("runpod", "tensordock", "vast", "salad", "octaspace")
Values = dict[str, Any]


def shipped(vendor: str) -> Values:
    return read_cluster_file(ROOT / "cluster" / f"{vendor}.yaml")


@pytest.mark.parametrize("vendor", VENDORS)
def test_shipped_files_pass_rays_validation_and_ours(vendor: str) -> None:
    assert check(shipped(vendor)) == []


def without(key: str, text: str) -> Callable[[Values], None]:
    """Return a change that takes a text out of the commands of a key."""

    def change(values: Values) -> None:
        values[key] = [command.replace(text, "") for command in values[key]]

    return change


def with_(*steps: Any) -> Callable[[Values], None]:
    """Return a change that sets the value, given last, at a place."""

    def change(values: Values) -> None:
        place: Any = values
        for step in steps[:-2]:
            place = place[step]
        place[steps[-2]] = steps[-1]

    return change


REFUSED = {
    "pods that cannot reach each other": (
        with_("provider", "global_networking", False), "only by global networking"),
    "a vendor without a network": (with_("provider", "vendor", "salad"), "HTTPS gateway"),
    "Vast outside an overlay": (with_("provider", "vendor", "vast"), "`provider.overlay`"),
    "OctaSpace": (with_("provider", "vendor", "octaspace"), "ports mapped by NAT"),
    "several machines as a single one": (
        with_("provider", "topology", "single"), "`max_workers` must be 0"),
    "common setup commands": (with_("setup_commands", ["true"]), "would run them twice"),
    "no address": (
        without("worker_start_ray_commands", "--node-ip-address=$NODE_IP"),
        "needs --node-ip-address"),
    "no token": (without("head_start_ray_commands", "RAY_AUTH_MODE=token"), "runs code"),
    "no autoscaler": (
        without("head_start_ray_commands", "--autoscaling-config=~/ray_bootstrap_config.yaml"),
        "never starts a worker"),
    "no watch of the head": (
        without("worker_start_ray_commands", "cluster.ray_up.head_watch"),
        "whose head is gone cost money"),
    "a state on two nodes": (
        with_("available_node_types", "ada", "resources", "lipsync_state", 1), "and no other node"),
    "no state": (
        with_("available_node_types", "head", "resources", {"CPU": 8}), "`lipsync_state: 1`"),
    "a GPU without its architecture": (
        with_("available_node_types", "ada", "labels", {}), "pools find their nodes"),
    "a name that no machine can have": (with_("cluster_name", "My_Cluster"), "lower-case"),
    "a misspelt key": (
        with_("available_node_types", "ada", "node_config", "disk", 9), "there is no such key"),
    "a key that the head cannot find": (
        with_("provider", "api_key_file", "/etc/key"), "must begin with ~/"),
    "no budget": (with_("provider", "usd_per_hour", 0), "greater than 0"),
    "no key on the head": (
        with_("file_mounts", {"~/.ray/auth_token": "x"}), "the head rents the workers"),
    "no token file": (with_("file_mounts", {}), "`~/.ray/auth_token`"),
    "what Ray does not know": (
        with_("available_node_types", "ada", "image", "x"), "Ray refuses"),
    "what Ray needs": (with_("max_workers", "many"), "Ray refuses `max_workers`"),
}  # fmt: skip


@pytest.mark.parametrize("change, sentence", REFUSED.values(), ids=REFUSED)
def test_what_would_fail_later_is_refused_with_the_remedy(
    change: Callable[[Values], None], sentence: str
) -> None:
    values = shipped("runpod")
    change(values)
    faults = check(values)
    assert any(sentence in fault for fault in faults), faults


def test_ray_asks_for_the_same_check_before_anything_is_rented() -> None:
    values = shipped("salad") | {"max_workers": 2}
    with pytest.raises(ClusterFileInvalid, match="one machine"):
        RentedNodeProvider.bootstrap_config(values)


def test_the_head_gets_the_public_key_and_the_digest_of_its_own_configuration(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    values = shipped("runpod")
    values["auth"]["ssh_private_key"] = str(key)
    provider = RentedNodeProvider.bootstrap_config(values)["provider"]
    assert provider["ssh_public_key"].startswith("ssh-ed25519 ")
    values["available_node_types"]["head"]["node_config"]["disk_gb"] = 99
    again = RentedNodeProvider.bootstrap_config(values)["provider"]
    assert provider["head_launch_hash"] != again["head_launch_hash"]


def test_the_application_has_a_pool_for_each_node_type_that_starts_from_zero() -> None:
    start = plan_start(ROOT / "serve_config.cluster.yaml", {"RAY_ADDRESS": "auto"}).start
    assert start.args.is_scaled and start.args.scaling.awaits_nodes
    assert {pool.replicas for pool in start.args.pools} == {0}
    for vendor in ("runpod", "tensordock"):
        types = shipped(vendor)["available_node_types"].values()
        labels = {one["labels"]["musetalk/arch"] for one in types}
        assert labels <= {pool.arch for pool in start.args.pools}


@pytest.mark.parametrize("text, sentence", [("a: [", "is not YAML"), ("- 1", "not a mapping")])
def test_a_file_that_is_no_cluster_file_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ClusterFileInvalid, match=sentence):
        read_cluster_file(file)
