"""Renting with a ledger and a budget: what callers use, one object for each vendor.

The steps of a rent:

1. The name and the price are written into the ledger, within the budget.
2. The create call is sent, once.
3. The id that the vendor gave is written into the ledger.

A machine is ours if its name is one of ours or the ledger has its id. At a vendor without names, a
machine also belongs to a rent without an id if it has the place of that offer and started when
that rent was asked for. No other machine is ever touched.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from cluster.rental.backend import RentalBackend
from cluster.rental.errors import NotOurs, PartialRent, RentalError, RentUnclear
from cluster.rental.identity import Kind
from cluster.rental.ledger import Budget, Ledger, Rent, RentState, is_running
from cluster.rental.values import Instance, InstanceState, Offer, OfferQuery, RentRequest, Vendor

logger = logging.getLogger(__name__)

# Guesses: how long a vendor's list may lack a machine that was made, and how long a create call
# may take effect after it was sent.
UNLISTED_S = 120.0
TAKES_EFFECT_S = 900.0
EARLY_S, LATE_S = 60.0, 180.0  # the start of a machine without a name, around its rent

NAME = "{name}"  # stands for the machine's name in a request's command and environment
FLEET_KINDS = frozenset({Kind.CELL, Kind.BENCH})


@dataclass(frozen=True, slots=True)
class Orphan:
    """A machine of ours that nobody wants any more. `reason` is a whole sentence."""

    instance: Instance
    reason: str


class Rentals:
    """The machines of one vendor that this program rents. Threads may share it."""

    def __init__(
        self,
        backend: RentalBackend,
        ledger: Ledger,
        budget: Budget,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.backend = backend
        self.ledger = ledger
        self.budget = budget
        self._clock = clock

    @property
    def vendor(self) -> Vendor:
        """Return whose machines these are."""
        return self.backend.vendor

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return what can be rented now, the cheapest first."""
        return self.backend.offers(query)

    def rent(self, request: RentRequest) -> Instance:
        """Rent one machine. `{name}` in its command and environment becomes its name.

        Raises:
            OverBudget: the budget or the cap on rents does not allow it.
            NoCapacity: take another offer.
            RentUnclear: the machine may come into being later; `sweep` finds it then.
            RentalError: nothing was rented.
            ValueError: the request breaks a rule of the vendor.
        """
        name, offer = request.identity.new_name(), request.offer
        prices = (offer.offer_id, offer.gpu_name, offer.usd_per_hour)
        self.ledger.ask(name, self.vendor, prices, self.budget)
        try:
            made = self.backend.rent(_named(request, name), name)
        except PartialRent as exc:
            self.ledger.rented(name, exc.instance_id)
            self._destroy(name, exc.instance_id)
            raise
        except RentUnclear:
            found = self._find(name)
            if found is None:
                raise
            made = found
        except (RentalError, ValueError):
            self.ledger.gone(name)
            raise
        self.ledger.rented(name, made.instance_id)
        facts = {"vendor": self.vendor, "machine": name, "gpu": offer.gpu_name}
        logger.info("machine rented", extra=facts)
        return replace(made, name=name)

    def list(self, cluster: str) -> tuple[Instance, ...]:
        """Return the machines of a cluster, and bring the ledger up to date.

        Rents whose machine is not listed any more become `gone`. Machines that the vendor made
        for a rent whose process was killed get their id. One that is to be destroyed is `ending`.
        """
        now = self._clock()
        live = self.ledger.live(self.vendor)
        ours = [self._claimed(one, live) for one in self.backend.list()]
        found = [one for one in ours if one is not None]
        self._close_lost(live, found, now)
        return tuple(
            one for one in found if one.identity is not None and one.identity.cluster == cluster
        )

    def get(self, instance_id: str) -> Instance | None:
        """Return one of our machines with all that is known about it, or None if it is gone.

        Raises:
            NotOurs: the machine is somebody else's.
        """
        found = self.backend.get(instance_id)
        if found is None:
            return None
        claimed = self._claimed(found, self.ledger.live(self.vendor))
        if claimed is None:
            raise NotOurs(
                f"The machine {instance_id} at {self.vendor} was not rented by this program."
            )
        return claimed

    def destroy(self, instance_id: str) -> None:
        """Give one of our machines back. One that is gone is no error.

        Raises:
            NotOurs: the machine is somebody else's.
        """
        self._destroy(self._name_of(instance_id), instance_id)

    def stop(self, instance_id: str) -> None:
        """Stop one of our machines.

        Raises:
            NotOurs: the machine is somebody else's.
            NotOffered: the vendor cannot stop a machine without ending it.
        """
        if self._name_of(instance_id) is not None:
            self.backend.stop(instance_id)

    def orphans(self, cluster: str, kinds: Collection[Kind] = FLEET_KINDS) -> tuple[Orphan, ...]:
        """Return the machines of a cluster that cost money and serve nobody.

        `kinds` are by default those of fleets: the workers of a Ray cluster may be in the ledger
        of its head instead of this one.
        """
        machines = self.list(cluster)
        rents = {rent.name: rent for rent in self.ledger.live(self.vendor)}
        found = []
        for one in machines:
            assert one.name is not None and one.identity is not None  # `list` returns only such
            reason = _why_orphaned(one, one.identity.kind, rents.get(one.name))
            if one.identity.kind in kinds and reason is not None:
                found.append(Orphan(one, reason))
        return tuple(found)

    def sweep(self, cluster: str, kinds: Collection[Kind] = FLEET_KINDS) -> tuple[Orphan, ...]:
        """Destroy the orphans of a cluster and return them."""
        found = self.orphans(cluster, kinds)
        for orphan in found:
            self._destroy(orphan.instance.name, orphan.instance.instance_id)
        return found

    def close(self) -> None:
        """Close the connections to the vendor."""
        self.backend.close()

    def _destroy(self, name: str | None, instance_id: str) -> None:
        if name is not None:
            self.ledger.ending(name)
        self.backend.destroy(instance_id)
        if name is not None:
            self.ledger.gone(name)
            facts = {"vendor": self.vendor, "machine": name}
            logger.info("machine returned", extra=facts)

    def _name_of(self, instance_id: str) -> str | None:
        """Return the name of a machine of ours, or None if there is no such machine.

        Raises:
            NotOurs: the machine is somebody else's.
        """
        for rent in self.ledger.live(self.vendor):
            if rent.instance_id == instance_id:
                return rent.name
        found = self.get(instance_id)
        return None if found is None else found.name

    def _find(self, name: str) -> Instance | None:
        """Return a machine whose create call got no answer, if the vendor lists it already."""
        with contextlib.suppress(RentalError):
            live = [rent for rent in self.ledger.live(self.vendor) if rent.name == name]
            for one in self.backend.list():
                claimed = self._claimed(one, live)
                if claimed is not None and claimed.name == name:
                    return claimed
        return None

    def _claimed(self, one: Instance, live: Sequence[Rent]) -> Instance | None:
        """Return a machine with its name if it is ours, and complete its rent in the ledger."""
        known = [rent for rent in live if rent.instance_id == one.instance_id]
        rent = next((rent for rent in known or live if _belongs(one, rent)), None)
        if rent is None:
            return one if one.identity is not None else None
        if rent.instance_id is None:
            self.ledger.rented(rent.name, one.instance_id)
        state = InstanceState.ENDING if rent.state is RentState.ENDING else one.state
        price = rent.usd_per_hour if one.usd_per_hour is None else one.usd_per_hour
        return replace(
            one,
            name=rent.name,
            state=state,
            usd_per_hour=price,
            offer_id=one.offer_id or rent.offer_id,
            gpu_name=one.gpu_name or rent.gpu_name,
        )

    def _close_lost(self, live: Sequence[Rent], found: Sequence[Instance], now: float) -> None:
        names = {one.name for one in found}
        for rent in live:
            patience_s = TAKES_EFFECT_S if rent.instance_id is None else UNLISTED_S
            if rent.state is RentState.ENDING:
                patience_s = 0.0
            if rent.name not in names and now - rent.asked_at >= patience_s:
                self.ledger.gone(rent.name)
                logger.info("machine lost", extra={"vendor": self.vendor, "machine": rent.name})


def _named(request: RentRequest, name: str) -> RentRequest:
    return replace(
        request,
        command=tuple(word.replace(NAME, name) for word in request.command),
        environment={key: text.replace(NAME, name) for key, text in request.environment.items()},
    )


def _belongs(one: Instance, rent: Rent) -> bool:
    """Return whether a machine is the one of a rent."""
    if rent.instance_id is not None:
        return rent.instance_id == one.instance_id
    if one.name is not None:
        return one.name == rent.name
    if one.offer_id != rent.offer_id or one.started_at is None:
        return False
    return -EARLY_S <= one.started_at.timestamp() - rent.asked_at <= LATE_S


def _why_orphaned(one: Instance, kind: Kind, rent: Rent | None) -> str | None:
    if rent is None:
        return "The ledger does not have it, although its name is one of ours."
    if rent.state is RentState.ENDING:
        return "It was to be destroyed, and that was not completed."
    if kind is Kind.BENCH and not is_running(rent.owner):
        return "It was rented for a measurement whose process has ended."
    if one.state is InstanceState.FAILED:
        return f"It has failed and will not recover ({one.detail})."
    return None
