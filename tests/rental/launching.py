"""A launcher that a test kills: it rents machines and returns some of them, until it is killed.

    python -m tests.rental.launching

reads one JSON array (vendor, address, ledger) from each line of standard input, forks a launcher,
prints its process id, and prints `gone` when it has ended. Forking saves the imports each time.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

from cluster.rental.ledger import Ledger
from cluster.rental.values import OfferQuery, RentRequest
from tests.rental.conftest import CELL, FAKES, rentals_of


def launch(vendor: str, url: str, ledger: str) -> None:
    """Rent two machines and return the first of them, again and again."""
    fake = FAKES[vendor]()
    fake.url = url
    rentals = rentals_of(fake, Ledger(Path(ledger)))
    query = OfferQuery(interruptible=True)
    for _ in itertools.count():
        made = [
            rentals.rent(RentRequest(CELL, rentals.offers(query)[0], "registry.example/worker:1"))
            for _ in range(2)
        ]
        rentals.destroy(made[0].instance_id)


def main() -> None:
    """Start a launcher for each line."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                launch(*json.loads(line))
            finally:
                os._exit(1)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
