"""Keys and addresses of the vendors, the budget, and where the ledger is: from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.rental.values import Vendor

ADDRESSES: Mapping[Vendor, str] = {
    Vendor.SALAD: "https://api.salad.com/api/public",
    Vendor.RUNPOD: "https://api.runpod.io",
    Vendor.VAST: "https://console.vast.ai",
    Vendor.TENSORDOCK: "https://dashboard.tensordock.com",
    Vendor.OCTASPACE: "https://api.octa.space",
}


class VendorSettings(BaseSettings):
    """One vendor. Each variable has its name in front, such as `RUNPOD_API_KEY`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    api_key: SecretStr | None = Field(None, description="The key of the vendor's API.")
    api_url: str = Field("", description="The address of the API. The default is the vendor's.")
    timeout_s: float = Field(30.0, gt=0, le=300, description="Seconds for one answer.")
    org_name: str | None = Field(None, description="The organization; Salad needs it.")
    project_name: str | None = Field(None, description="The project; Salad needs it.")


class RentalSettings(BaseSettings):
    """What applies to all vendors. Each variable begins with `RENTAL_`."""

    model_config = SettingsConfigDict(env_prefix="RENTAL_", frozen=True, extra="ignore")

    usd_per_hour: float = Field(
        1.0, gt=0, description="What all rented machines together may cost per hour, in dollars."
    )
    rents_per_hour: int = Field(
        20, gt=0, description="How many machines may be rented within an hour."
    )
    ledger: Path = Field(
        default_factory=lambda: Path.home() / ".local/state/lipsync/rentals.sqlite",
        description="The file with everything that was rented.",
    )


def vendor_settings(vendor: Vendor) -> VendorSettings:
    """Return the settings of one vendor, with the vendor's own address by default."""
    read = VendorSettings(_env_prefix=f"{vendor.upper()}_")
    return read if read.api_url else read.model_copy(update={"api_url": ADDRESSES[vendor]})
