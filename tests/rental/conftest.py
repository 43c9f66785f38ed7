"""Fixtures: the five vendors as fakes, and what a caller has of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.rental.clients import open_backend
from cluster.rental.identity import Identity, Kind
from cluster.rental.ledger import Budget, Ledger
from cluster.rental.rentals import Rentals
from cluster.rental.settings import VendorSettings
from cluster.rental.values import OfferQuery, RentRequest, Vendor
from tests.rental.fakes.octaspace import FakeOctaSpace
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


@pytest.fixture(params=FAKES)
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Account]:
    """Each of the five vendors. Nothing may be left rented, and nothing may break a spec."""
    with opened(FAKES[request.param], tmp_path) as account:
        yield account


class opened:
    """An account of a vendor for the length of a block."""

    def __init__(self, kind: type[FakeVendor], folder: Path) -> None:
        needs_spec(kind.spec_file)
        self._fake = kind()
        self._running = self._fake.running()
        self._ledger = Ledger(folder / "ledger.sqlite")

    def __enter__(self) -> Account:
        fake = self._running.__enter__()
        self._rentals = rentals_of(fake, self._ledger)
        return Account(fake, self._rentals, self._ledger)

    def __exit__(self, *exc: object) -> None:
        self._rentals.close()
        self._running.__exit__(None, None, None)
        if exc[0] is None:
            assert self._fake.wrong == []
            assert set(self._fake.machines) <= {self._foreign()}, "a machine was left behind"

    def _foreign(self) -> str:
        return next((key for key in self._fake.machines if self._is_foreign(key)), "")

    def _is_foreign(self, key: str) -> bool:
        facts = self._fake.machines[key]
        name = facts.get("name", facts.get("label"))
        return name in ("theirs", "somebody-elses") or facts.get("node_id") == 339


def with_environment(request: RentRequest, **variables: str) -> RentRequest:
    """Return a request with other variables."""
    return replace(request, environment=variables)
