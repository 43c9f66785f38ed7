"""Which addresses a source may be fetched from, with the errors of downloads.

The rules are those of orchestrator/net. Operators allow more hosts and networks with
ALLOWED_SOURCE_HOSTS and `inputs.allowed_hosts`.
"""

from __future__ import annotations

from musetalk_pipeline.errors import SourceRefused
from orchestrator.net import addresses as rules
from orchestrator.net.addresses import AddressRefused, IpAddress, Location
from orchestrator.net.shown import shown_url

__all__ = ["AddressPolicy", "IpAddress", "Location", "follow", "parse_location"]

TRUST = (
    "Send a URL on the public internet. If you operate this worker and trust that host, add it to "
    "ALLOWED_SOURCE_HOSTS or inputs.allowed_hosts."
)


def parse_location(url: str) -> Location:
    """Parse an http or https URL strictly.

    Raises:
        SourceRefused: it is malformed; see the rules.
    """
    try:
        return rules.parse_location(url)
    except AddressRefused as exc:
        raise _refused(exc, shown_url(url)) from exc


def follow(location: Location, reference: str) -> Location:
    """Return the target of a redirect from `location` to `reference` (absolute or relative).

    Raises:
        SourceRefused: see `parse_location`.
    """
    try:
        return location.follow(reference)
    except AddressRefused as exc:
        raise _refused(exc, shown_url(reference)) from exc


class AddressPolicy(rules.AddressPolicy):
    """The rules, for addresses that come with a job."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as exc:
            entry, _, what = str(exc).partition(" is not ")
            names = "ALLOWED_SOURCE_HOSTS or inputs.allowed_hosts"
            raise ValueError(f"{entry} in {names} is not {what}") from exc

    def check(self, location: Location, addresses: list[IpAddress]) -> None:
        """Check all addresses that a host resolved to.

        Raises:
            SourceRefused: one of them is refused.
        """
        try:
            super().check(location, addresses)
        except AddressRefused as exc:
            raise _refused(exc, location.shown) from exc


def _refused(exc: AddressRefused, shown: str) -> SourceRefused:
    if exc.kind is None:
        return SourceRefused(f"Source refused: {exc.reason}", hint=exc.hint, url=shown)
    reason = f"the host has a {exc.kind} address, from which this worker does not fetch."
    return SourceRefused(f"Source refused: {reason}", hint=TRUST, url=shown)
