"""The client of each vendor, made from its settings."""

from __future__ import annotations

from cluster.rental.backend import RentalBackend
from cluster.rental.errors import WrongKey
from cluster.rental.http import Explain, VendorHttp
from cluster.rental.ledger import Budget, Ledger
from cluster.rental.octaspace import OctaSpace
from cluster.rental.rentals import Rentals
from cluster.rental.runpod import RunPod
from cluster.rental.salad import Salad
from cluster.rental.settings import RentalSettings, VendorSettings, vendor_settings
from cluster.rental.tensordock import TensorDock
from cluster.rental.tensordock import explain as explain_tensordock
from cluster.rental.values import Vendor
from cluster.rental.vast import Vast
from cluster.rental.vast import explain as explain_vast

_EXPLAIN: dict[Vendor, Explain] = {
    Vendor.VAST: explain_vast,
    Vendor.TENSORDOCK: explain_tensordock,
}


def open_rentals(vendor: Vendor, settings: RentalSettings | None = None) -> Rentals:
    """Return the machines of one vendor, with the ledger and the budget of the environment.

    Raises:
        WrongKey: the key, or what else the vendor needs, is not set.
    """
    chosen = settings or RentalSettings()
    budget = Budget(chosen.usd_per_hour, chosen.rents_per_hour)
    return Rentals(open_backend(vendor, vendor_settings(vendor)), Ledger(chosen.ledger), budget)


def open_backend(vendor: Vendor, settings: VendorSettings) -> RentalBackend:
    """Return the client of a vendor.

    Raises:
        WrongKey: the key, or what else the vendor needs, is not set.
    """
    key = settings.api_key.get_secret_value() if settings.api_key is not None else ""
    if not key:
        raise WrongKey(f"{vendor.upper()}_API_KEY is not set.")
    http = VendorHttp(
        vendor,
        settings.api_url,
        _headers(vendor, key),
        timeout_s=settings.timeout_s,
        explain=_EXPLAIN.get(vendor, lambda _answer: None),
    )
    match vendor:
        case Vendor.SALAD:
            if not (settings.org_name and settings.project_name):
                raise WrongKey("SALAD_ORG_NAME and SALAD_PROJECT_NAME have to be set.")
            return Salad(http, settings.org_name, settings.project_name)
        case Vendor.RUNPOD:
            return RunPod(http)
        case Vendor.VAST:
            return Vast(http)
        case Vendor.TENSORDOCK:
            return TensorDock(http)
        case Vendor.OCTASPACE:
            return OctaSpace(http)


def _headers(vendor: Vendor, key: str) -> dict[str, str]:
    match vendor:
        case Vendor.SALAD:
            return {"Salad-Api-Key": key}
        case Vendor.OCTASPACE:
            return {"Authorization": key}
        case _:
            return {"Authorization": f"Bearer {key}"}
