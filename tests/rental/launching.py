"""A launcher that a test kills: it rents machines and returns some of them, until it is killed."""

from __future__ import annotations

import itertools
from pathlib import Path

from cluster.rental.ledger import Ledger
from cluster.rental.values import OfferQuery, RentRequest
from tests.rental.conftest import CELL, FAKES, rentals_of


def launch(vendor: str, url: str, ledger: Path) -> None:
    """Rent two machines and return the first of them, again and again."""
    fake = FAKES[vendor]()
    fake.url = url
    rentals = rentals_of(fake, Ledger(ledger))
    for _ in itertools.count():
        offer = rentals.offers(OfferQuery(interruptible=True))[0]
        request = RentRequest(CELL, offer, "registry.example/worker:1")
        first = rentals.rent(request)
        offer = rentals.offers(OfferQuery(interruptible=True))[0]
        rentals.rent(RentRequest(CELL, offer, "registry.example/worker:1"))
        rentals.destroy(first.instance_id)
