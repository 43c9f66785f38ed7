"""What every vendor's client can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.rental.values import Instance, Offer, OfferQuery, RentRequest, Vendor


class RentalBackend(Protocol):
    """A client of one vendor. Its methods may be called from several threads.

    Every method may raise `VendorDown`, `RateLimited`, `WrongKey`, `CallRefused` and `OddAnswer`
    (errors.py). Calls that are safe to repeat have been repeated by then. `rent` is used through
    `Rentals` (rentals.py), which writes the ledger first, keeps to the budget, and cleans up after
    a create that fails half-way.
    """

    @property
    def vendor(self) -> Vendor:
        """Return whose client this is."""

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return what can be rented now, the cheapest first."""

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Rent one machine under this name and return it. It is never repeated once it was sent.

        Raises:
            NoCapacity: nothing was rented. Another offer may work.
            PartialRent: it failed, and a machine exists that has to be destroyed.
            RentUnclear: no clear answer came. The machine may exist.
            ValueError: the request breaks a rule of the vendor. Nothing was sent.
        """

    def list(self) -> Sequence[Instance]:
        """Return all machines of the account, over all pages, those of other programs included.

        A vendor's list may lack what `get` has, such as the address.
        """

    def get(self, instance_id: str) -> Instance | None:
        """Return a machine with all that is known about it, or None if it is gone."""

    def stop(self, instance_id: str) -> None:
        """Stop a machine without giving it up. One that is gone is no error.

        Raises:
            NotOffered: at this vendor a machine that is stopped is gone.
        """

    def destroy(self, instance_id: str) -> None:
        """Give a machine back. One that is gone is no error."""

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Return the last lines that the container has printed.

        Raises:
            NotOffered: the vendor does not show them.
        """

    def close(self) -> None:
        """Close the connections."""
