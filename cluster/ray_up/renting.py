"""Rents a machine for a node type: the cheapest offer, then the next one, then a pause."""

from __future__ import annotations

from cluster.ray_up.cluster_settings import NodeSettings, ProviderSettings
from cluster.ray_up.pauses import Pauses
from cluster.rental.errors import (
    CallRefused,
    NoCapacity,
    OddAnswer,
    OverBudget,
    RateLimited,
    RentalError,
    RentUnclear,
    VendorDown,
    WrongKey,
)
from cluster.rental.identity import Identity
from cluster.rental.rentals import Rentals
from cluster.rental.values import Instance, Offer, OfferQuery, RentRequest

MAX_OFFERS = 5  # in one try
# Ray shows these where it lists failed launches: 20 characters at most.
CATEGORIES: tuple[tuple[type[RentalError], str], ...] = (
    (NoCapacity, "NoCapacity"),
    (OverBudget, "OverBudget"),
    (WrongKey, "WrongKey"),
    (RateLimited, "RateLimited"),
    (RentUnclear, "RentUnclear"),
    (VendorDown, "VendorDown"),
    (CallRefused, "CallRefused"),
    (OddAnswer, "OddAnswer"),
)


class LaunchFailed(Exception):
    """No machine was rented. `category` is short and stable."""

    def __init__(self, category: str, message: str) -> None:
        super().__init__(message)
        self.category = category


class Renting:
    """Rents machines for one cluster. May be used from several threads."""

    def __init__(self, rentals: Rentals, settings: ProviderSettings, pauses: Pauses) -> None:
        self._rentals, self._settings, self._pauses = rentals, settings, pauses

    def rent(self, identity: Identity, node: NodeSettings) -> Instance:
        """Rent one machine.

        During a pause nothing is asked of the vendor.

        Raises:
            LaunchFailed: none was rented.
        """
        node_type = identity.node_type
        if left_s := self._pauses.left_s(node_type):
            raise LaunchFailed(
                "BackingOff",
                f"{self._pauses.reason(node_type)} The next try is in {left_s:.0f} s.",
            )
        try:
            rented = self._first_that_works(identity, node)
        except (RentalError, ValueError) as error:
            at_least_s = (error.retry_after_s or 0.0) if isinstance(error, RateLimited) else 0.0
            pause_s = self._pauses.failed(node_type, str(error), at_least_s)
            raise LaunchFailed(
                category_of(error), f"{error} The next try is in {pause_s:.0f} s."
            ) from error
        self._pauses.succeeded(node_type)
        return rented

    def _first_that_works(self, identity: Identity, node: NodeSettings) -> Instance:
        query = OfferQuery(
            gpu_names=node.gpus,
            max_usd_per_hour=node.usd_per_hour,
            interruptible=node.interruptible,
            min_cuda=node.min_cuda,
            disk_gb=node.disk_gb,
            needs_private_network=self._settings.topology == "multi",
            needs_ssh=True,
        )
        refused: list[str] = []
        for offer in self._rentals.offers(query)[:MAX_OFFERS]:
            self._require_budget(identity, offer)
            try:
                return self._rentals.rent(self._request(identity, node, offer))
            except NoCapacity as taken:
                refused.append(f"{offer.gpu_name}: {taken}")
        raise NoCapacity(
            f"{self._settings.vendor} has no machine for {identity.node_type} "
            f"({'; '.join(refused) or 'no offer of ' + ', '.join(node.gpus)})."
        )

    def _require_budget(self, identity: Identity, offer: Offer) -> None:
        """Refuse what the cluster's budget does not allow.

        The ledger on the head lacks the head itself, and workers that an earlier head has rented.
        """
        machines = self._rentals.list(identity.cluster)
        spent = sum(machine.usd_per_hour or 0.0 for machine in machines)
        if spent + offer.usd_per_hour > self._settings.usd_per_hour:
            raise OverBudget(
                f"{len(machines)} machines cost ${spent:.2f} an hour, and with one more for "
                f"${offer.usd_per_hour:.2f} they would cost more than the "
                f"${self._settings.usd_per_hour:.2f} of `provider.usd_per_hour`."
            )

    def _request(self, identity: Identity, node: NodeSettings, offer: Offer) -> RentRequest:
        key = self._settings.ssh_public_key
        # RunPod's images, and ours, let in whoever has the key that this variable names.
        login = {} if key is None else {"PUBLIC_KEY": key}
        return RentRequest(
            identity,
            offer,
            node.image,
            environment={**login, **node.environment},
            vcpus=node.vcpus,
            memory_mb=node.memory_gb * 1024,
            shm_mb=node.shm_gb * 1024,
            disk_gb=node.disk_gb,
            min_cuda=node.min_cuda,
            ports=(22,),
            wants_ssh=True,
            wants_private_network=self._settings.topology == "multi",
            ssh_public_key=key,
        )


def category_of(error: RentalError | ValueError) -> str:
    """Return the short word for an error; a request that breaks a vendor's rule is a ValueError."""
    return next((word for kind, word in CATEGORIES if isinstance(error, kind)), "CannotBeRented")
