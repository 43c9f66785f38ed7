"""The NodeProvider that Ray loads: `module: cluster.ray_up.node_provider.RentedNodeProvider`.

It runs in two places: with the operator, who rents the head by `ray up`, and in the monitor on the
head, which rents the workers. Both list the vendor's machines and read in their names what they are
for, so neither needs anything from the other. Ray's autoscaler has to be its version 2.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ray.autoscaler._private.util import hash_launch_conf
from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.ray_up.cluster_file import refuse
from cluster.ray_up.cluster_settings import NodeSettings, ProviderSettings
from cluster.ray_up.nodes import Nodes, short_hash
from cluster.ray_up.pauses import Pauses
from cluster.ray_up.renting import LaunchFailed, Renting
from cluster.ray_up.ssh import PortedCommandRunner, PortedDockerRunner
from cluster.ray_up.tag_file import TagFile
from cluster.ray_up.vendor_access import open_rentals
from cluster.rental.identity import Identity, Kind
from cluster.rental.values import Instance

UNINITIALIZED = "uninitialized"


class RentedNodeProvider(NodeProvider):
    """Rents and returns the machines of one Ray cluster. Its methods are called from many threads.

    The signatures are Ray's; a node's id is the vendor's id of its machine.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._settings = ProviderSettings.model_validate(provider_config)
        self._rentals = open_rentals(self._settings)
        self._tags = TagFile(cluster_name)
        self._nodes = Nodes(self._rentals, cluster_name, self._tags)
        self._renting = Renting(self._rentals, self._settings, Pauses())

    def close(self) -> None:
        """Close the connections to the vendor. Ray itself keeps a provider for its whole life."""
        self._rentals.close()

    # --- what there is ---

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """List the machines of this cluster whose tags match; asks the vendor."""
        return [
            node.instance_id
            for node in self._nodes.refresh()
            if tag_filters.items() <= self._tags_of(node).items()
        ]

    def is_running(self, node_id: str) -> bool:
        """Return whether the machine can be logged in to."""
        node = self._nodes.find(node_id)
        return node is not None and self._nodes.is_up(node)

    def is_terminated(self, node_id: str) -> bool:
        """Return whether the machine is gone, or never was."""
        return self._nodes.find(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return the tags of a machine; none if it is gone."""
        node = self._nodes.find(node_id)
        return {} if node is None else self._tags_of(node)

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Add tags. Those that are in the machine's name stay as they are."""
        self._tags.merge(node_id, tags)

    def external_ip(self, node_id: str) -> str | None:
        """Return where the operator reaches the machine, or None while it starts."""
        found = self._nodes.outside(node_id)
        return None if found is None else found.host

    def internal_ip(self, node_id: str) -> str | None:
        """Return where the other machines reach it, or None while it starts."""
        found = self._nodes.inside(node_id)
        return None if found is None else found.host

    def _tags_of(self, node: Instance) -> dict[str, str]:
        identity = node.identity
        assert identity is not None, "`Nodes` lists only machines whose names can be read"
        kept = self._tags.of(node.instance_id)
        return {
            TAG_RAY_NODE_STATUS: UNINITIALIZED,
            **kept,
            TAG_RAY_CLUSTER_NAME: self.cluster_name,
            TAG_RAY_NODE_KIND: identity.kind.value,
            TAG_RAY_USER_NODE_TYPE: identity.node_type,
            TAG_RAY_NODE_NAME: f"ray-{self.cluster_name}-{identity.kind.value}",
            TAG_RAY_LAUNCH_CONFIG: self._launch_hash(identity, kept),
        }

    def _launch_hash(self, identity: Identity, kept: dict[str, str]) -> str:
        """Return Ray's digest, of which the name has only a short one of its own.

        Ray compares the head's with the file's, and rents another head if they differ.
        """
        wanted = self._settings.head_launch_hash
        if wanted is not None and short_hash(wanted) == identity.launch_hash:
            return wanted
        return kept.get(TAG_RAY_LAUNCH_CONFIG, identity.launch_hash)

    # --- renting and returning ---

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Rent machines.

        Raises:
            NodeLaunchException: not all could be rented. Its category is short and stable.
        """
        identity = Identity(
            self.cluster_name,
            Kind(tags[TAG_RAY_NODE_KIND]),
            tags[TAG_RAY_USER_NODE_TYPE],
            short_hash(tags[TAG_RAY_LAUNCH_CONFIG]),
        )
        rented: dict[str, Any] = {}
        for _ in range(count):
            try:
                node = self._renting.rent(identity, NodeSettings.model_validate(node_config))
            except LaunchFailed as failed:
                raise NodeLaunchException(failed.category, str(failed), None) from failed
            self._nodes.add(node)
            self._tags.merge(node.instance_id, tags)
            rented[node.instance_id] = {}
        return rented

    def terminate_node(self, node_id: str) -> None:
        """Return a machine. One that is gone already is no error."""
        self._nodes.destroy(node_id)

    def cleanup_cluster_resources(self) -> None:
        """Forget the cluster; `ray down` calls this when its machines are gone."""
        self._tags.remove()

    # --- how Ray gets there ---

    def get_command_runner(
        self,
        log_prefix: str,
        node_id: str,
        auth_config: dict[str, Any],
        cluster_name: str,
        process_runner: Any,
        use_internal_ip: bool,
        docker_config: dict[str, Any] | None = None,
    ) -> CommandRunnerInterface:
        """Return what runs commands on a machine, at the port of that machine."""
        find = self._nodes.inside if use_internal_ip else self._nodes.outside
        common = {
            "log_prefix": log_prefix,
            "node_id": node_id,
            "provider": self,
            "auth_config": auth_config,
            "cluster_name": cluster_name,
            "process_runner": process_runner,
            "use_internal_ip": use_internal_ip,
        }
        if docker_config and docker_config.get("container_name"):
            return PortedDockerRunner(lambda: find(node_id), docker_config, **common)
        return PortedCommandRunner(lambda: find(node_id), **common)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Check the file, and add what the head has to know; asks no vendor.

        Raises:
            ClusterFileInvalid: the file has a fault; nothing has been rented.
        """
        refuse(cluster_config)
        config = copy.deepcopy(cluster_config)
        auth, provider = config["auth"], config["provider"]
        key = Path(auth["ssh_private_key"]).expanduser()
        provider["ssh_public_key"] = key.with_name(f"{key.name}.pub").read_text().strip()
        head = config["available_node_types"][config["head_node_type"]]
        provider["head_launch_hash"] = hash_launch_conf(head["node_config"], auth)
        return config
