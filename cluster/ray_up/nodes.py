"""The machines of one cluster as the vendor lists them, and where they are reached."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from cluster.ray_up.ssh import SshAddress
from cluster.ray_up.tag_file import TagFile
from cluster.rental.errors import RentalError
from cluster.rental.identity import Kind, launch_hash
from cluster.rental.rentals import Rentals
from cluster.rental.values import Instance, InstanceState

logger = logging.getLogger(__name__)

LAG_S = 120.0  # a guess
INSIDE_PORT = 22  # of the sshd of a machine, within the cluster's own network


def short_hash(ray_hash: str) -> str:
    """Return the digest in a machine's name for Ray's digest of a launch configuration."""
    return launch_hash({"ray": ray_hash})


class Nodes:
    """A view of one cluster's machines, renewed by `refresh`. May be used from several threads.

    A vendor's list may lag behind: for `LAG_S`, a machine that was just rented counts although it
    is not listed yet, and one that was just returned does not count although it still is.
    """

    def __init__(
        self,
        rentals: Rentals,
        cluster_name: str,
        tags: TagFile,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rentals, self._cluster_name, self._tags = rentals, cluster_name, tags
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Instance] = {}
        self._rented_at: dict[str, float] = {}  # those that have not been listed yet
        self._returned_at: dict[str, float] = {}

    def refresh(self) -> Sequence[Instance]:
        """Ask the vendor, and return the machines that work can be expected of.

        One of ours that has failed or is stopped never comes back, and still costs money: it is
        returned.
        """
        before = self._tags.node_ids() | set(self._known)
        ours = [node for node in self._rentals.list(self._cluster_name) if _is_node(node)]
        with self._lock:
            gone = before - self._take_over(ours)
            for node_id in gone:
                self._known.pop(node_id, None)
            found = list(self._known.values())
        self._tags.forget(gone)
        for node in ours:
            if node.state in (InstanceState.FAILED, InstanceState.STOPPED):
                self._return_useless(node)
        return found

    def _take_over(self, listed: Sequence[Instance]) -> set[str]:
        """Note what is listed, and return the ids of all machines that there are."""
        now = self._clock()
        for since in (self._rented_at, self._returned_at):
            for node_id in [key for key, at in since.items() if now - at > LAG_S]:
                del since[node_id]
        for node in listed:
            self._rented_at.pop(node.instance_id, None)
            if node.state.is_useful and node.instance_id not in self._returned_at:
                known = self._known.get(node.instance_id)
                self._known[node.instance_id] = self._more_complete(known, node)
        useful = {node.instance_id for node in listed if node.state.is_useful}
        return (useful | set(self._rented_at)) - set(self._returned_at)

    @staticmethod
    def _more_complete(known: Instance | None, listed: Instance) -> Instance:
        """Return the newer one, unless the vendor's list lacks the address that is known."""
        if known is not None and known.ssh is not None and listed.ssh is None:
            return known
        return listed

    def _return_useless(self, node: Instance) -> None:
        logger.warning("%s is %s (%s): returned", node.instance_id, node.state, node.detail)
        try:
            self._rentals.destroy(node.instance_id)
        except RentalError as exc:  # the next refresh tries again
            logger.warning("%s could not be returned: %s", node.instance_id, exc)

    def find(self, node_id: str) -> Instance | None:
        """Return a machine, or None if it is gone."""
        with self._lock:
            known = self._known.get(node_id)
        if known is not None:
            return known
        return next((node for node in self.refresh() if node.instance_id == node_id), None)

    def is_up(self, node: Instance) -> bool:
        """Return whether the machine runs and its address is known."""
        return node.state is InstanceState.RUNNING and self.outside(node.instance_id) is not None

    def add(self, node: Instance) -> None:
        """Note a machine that has just been rented."""
        with self._lock:
            self._rented_at[node.instance_id] = self._clock()
            self._known[node.instance_id] = node

    def destroy(self, node_id: str) -> None:
        """Return a machine to its vendor. One that is gone is no error."""
        self._rentals.destroy(node_id)
        with self._lock:
            self._known.pop(node_id, None)
            self._rented_at.pop(node_id, None)
            self._returned_at[node_id] = self._clock()

    def outside(self, node_id: str) -> SshAddress | None:
        """Return where the machine's sshd is reached from outside, or None while it starts."""
        node = self._with_address(node_id)
        return (
            None if node is None or node.ssh is None else SshAddress(node.ssh.host, node.ssh.port)
        )

    def inside(self, node_id: str) -> SshAddress | None:
        """Return where it is reached from the cluster's own network, or None while it starts."""
        node = self._with_address(node_id)
        if node is None or node.ssh is None:
            return None
        if node.private_ip is not None:
            return SshAddress(node.private_ip, INSIDE_PORT)
        return SshAddress(node.ssh.host, node.ssh.port)

    def _with_address(self, node_id: str) -> Instance | None:
        """Return a machine; asks for it alone while its address is not known."""
        node = self.find(node_id)
        if node is None or node.ssh is not None:
            return node
        full = self._rentals.get(node_id)
        with self._lock:
            if full is not None and node_id in self._known:
                self._known[node_id] = full
        return full


def _is_node(machine: Instance) -> bool:
    """Return whether a machine is a part of a Ray cluster, and not a cell of the same name."""
    identity = machine.identity
    return identity is not None and identity.kind in (Kind.HEAD, Kind.WORKER)
