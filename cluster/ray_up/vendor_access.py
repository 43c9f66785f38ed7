"""Opens the vendor of a cluster: the key comes from the file that the cluster file names."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from cluster.ray_up.cluster_settings import ProviderSettings
from cluster.rental.clients import open_backend
from cluster.rental.errors import WrongKey
from cluster.rental.ledger import Budget, Ledger
from cluster.rental.rentals import Rentals
from cluster.rental.settings import ADDRESSES, RentalSettings, VendorSettings, vendor_settings
from cluster.rental.values import Vendor


def open_rentals(settings: ProviderSettings) -> Rentals:
    """Return the machines of the cluster's vendor, within the budget of its file.

    Raises:
        WrongKey: the file with the key cannot be read, or something else that the vendor needs is
            not set.
    """
    file = settings.api_key_file.expanduser()
    try:
        key = file.read_text().strip()
    except OSError as exc:
        raise WrongKey(
            f"The key of {settings.vendor} cannot be read from {settings.api_key_file}: "
            f"{exc.strerror}."
        ) from None
    usual = vendor_settings(settings.vendor)
    access = usual.model_copy(
        update={"api_key": SecretStr(key), "api_url": settings.base_url or usual.api_url}
    )
    budget = Budget(settings.usd_per_hour, settings.rents_per_hour)
    return Rentals(open_backend(settings.vendor, access), Ledger(RentalSettings().ledger), budget)


def destroy_own_machine(
    vendor: Vendor, machine_id: str, key: str, environ: Mapping[str, str]
) -> None:
    """Give the machine back on which this runs, with the key that the vendor has put there.

    Raises:
        RentalError: the vendor did not accept that, or did not answer.
    """
    url = environ.get(f"{vendor.upper()}_API_URL") or ADDRESSES[vendor]
    backend = open_backend(vendor, VendorSettings(api_key=SecretStr(key), api_url=url))
    try:
        backend.destroy(machine_id)
    finally:
        backend.close()
