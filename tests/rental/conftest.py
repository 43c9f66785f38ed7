"""Fixtures: the five vendors as fakes, and what a caller has of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.rental.clients import open_backend
from cluster.rental.identity import Identity, Kind
from cluster.rental.ledger import Budget, Ledger
from cluster.rental.rentals import Rentals
from cluster.rental.settings import VendorSettings
from cluster.rental.values import OfferQuery, RentRequest, Vendor
from tests.rental.fakes.octaspace import NODES, FakeOctaSpace
from tests.rental.fakes.runpod import FakeRunPod
from tests.rental.fakes.salad import FakeSalad
from tests.rental.fakes.server import KEY, FakeVendor
from tests.rental.fakes.spec import load_spec
from tests.rental.fakes.tensordock import FakeTensorDock
from tests.rental.fakes.vast import FakeVast

FAKES: dict[str, type[FakeVendor]] = {
    "salad": FakeSalad,
    "runpod": FakeRunPod,
    "vast": FakeVast,
    "tensordock": FakeTensorDock,
    "octaspace": FakeOctaSpace,
}
CELL = Identity("prod", Kind.CELL, "rtx-4090-24gb", "0123abcd")
RICH = Budget(1000.0, 1000)


@dataclass(frozen=True)
class Account:
    """A vendor's fake, and a caller with the right key."""

    fake: FakeVendor
    rentals: Rentals
    ledger: Ledger
    fake_folder: Path

    def request(self, identity: Identity = CELL) -> RentRequest:
        """Return a request for the cheapest offer."""
        offer = self.rentals.offers(OfferQuery(interruptible=True))[0]
        return RentRequest(
            identity,
            offer,
            image="registry.example/lipsync/worker:1",
            command=("tini", "--", "lipsync", "serve"),
            environment={"PROVIDER": "x", "TOKEN": "secret value"},
            ssh_public_key="ssh-ed25519 AAAA test",
            wants_ssh=self.fake.vendor != "salad",
        )

    def named_machines(self) -> set[str]:
        """Return the ids of the machines that the account has."""
        return set(self.fake.machines)


def settings_of(fake: FakeVendor, key: str = KEY) -> VendorSettings:
    """Return the settings that lead to a fake."""
    return VendorSettings(
        api_key=SecretStr(key), api_url=fake.url, org_name="acme", project_name="lips", timeout_s=10
    )


def rentals_of(fake: FakeVendor, ledger: Ledger, budget: Budget = RICH) -> Rentals:
    """Return a caller of a fake."""
    backend = open_backend(Vendor(fake.vendor), settings_of(fake))
    return Rentals(backend, ledger, budget)


def needs_spec(name: str | None) -> None:
    """Skip where a vendor's specification is not at hand."""
    if name is not None and load_spec(name) is None:
        pytest.skip(f"the vendor's specification ../shared/specs/{name} is not at hand")


@contextmanager
def opened(kind: type[FakeVendor], folder: Path) -> Iterator[Account]:
    """Open an account. At the end nothing of ours may be rented, and no specification broken."""
    fake, ledger = kind(), Ledger(folder / "ledger.sqlite")
    with fake.running():
        rentals = rentals_of(fake, ledger)
        try:
            yield Account(fake, rentals, ledger, folder)
        finally:
            rentals.close()
    assert fake.wrong == []
    left = {key for key, facts in fake.machines.items() if not _is_foreign(facts)}
    assert left == set(), "a machine was left behind"


def _is_foreign(facts: dict[str, Any]) -> bool:
    name = facts.get("name", facts.get("label"))
    return name in ("theirs", "somebody-elses") or facts.get("node_id") == NODES[-1]


# The others are left to CI.
QUICK = ("runpod",)
VENDORS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAKES]


@pytest.fixture(params=VENDORS)
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Account]:
    """Each of the five vendors. Nothing may be left rented, and nothing may break a spec."""
    needs_spec(FAKES[request.param].spec_file)
    with opened(FAKES[request.param], tmp_path) as account:
        yield account
