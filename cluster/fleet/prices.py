"""What the vendors ask now, and what a finished minute of video would cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.catalogue.table import Catalogue, Findings, GpuClass, Price, with_prices
from cluster.rental.backend import RentalBackend
from cluster.rental.values import Offer, OfferQuery, Vendor

MANY = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One class at one vendor. `usd_per_minute` is None where the speed is not known."""

    gpu_class: GpuClass
    price: Price
    usd_per_minute: float | None


def ask_prices(
    backend: RentalBackend, catalogue: Catalogue, date: str, *, interruptible: bool
) -> dict[str, Price]:
    """Return the cheapest offer of each class at a vendor, by the name of the class."""
    names = tuple(name for one in catalogue.classes for name in one.names.get(backend.vendor, ()))
    is_market = backend.vendor is Vendor.VAST  # whose search needs the names
    query = OfferQuery(
        gpu_names=names if is_market else (), interruptible=interruptible, limit=MANY
    )
    return _cheapest(backend.offers(query), catalogue, date)


def add_prices(findings: Findings, prices: Iterable[tuple[str, Price]]) -> Findings:
    """Return findings with newer prices."""
    for name, price in prices:
        findings = with_prices(findings, name, [price])
    return findings


def table(catalogue: Catalogue) -> Sequence[Row]:
    """Return all prices, those with the fewest dollars for a finished minute first."""
    rows = [
        Row(one, price, one.usd_per_minute(price.usd_per_hour))
        for one in catalogue.classes
        for price in one.prices
    ]
    unknown = float("inf")
    return sorted(
        rows,
        key=lambda row: (
            unknown if row.usd_per_minute is None else row.usd_per_minute,
            row.price.usd_per_hour,
        ),
    )


def report(catalogue: Catalogue, date: str) -> str:
    """Return a Markdown document of all prices."""
    lines = [
        "# Dollars per finished minute",
        "",
        f"Written on {date}. A finished minute has 1500 frames. A class whose speed nobody has",
        "measured has no such figure; `lipsync fleet bench` measures it.",
        "",
        "| class | architecture | provider | tier | $/h | price of | frames/s | $/minute |",
        "|---|---|---|---|--:|---|--:|--:|",
    ]
    for row in table(catalogue):
        one, price = row.gpu_class, row.price
        speed = f"{one.speed.frames_per_s:g}" if one.speed else ""
        cost = f"{row.usd_per_minute:.5f}" if row.usd_per_minute is not None else ""
        lines.append(
            f"| {one.name} | {one.architecture} | {price.vendor} | {price.tier} | "
            f"{price.usd_per_hour:.3f} | {price.date} | {speed} | {cost} |"
        )
    speeds = [one for one in catalogue.classes if one.speed is not None]
    lines += ["", "Sources of the speeds:", ""]
    lines += [f"- {one.name}: {one.speed.source}, {one.speed.date}" for one in speeds if one.speed]
    return "\n".join([*lines, ""])


def _cheapest(offers: Iterable[Offer], catalogue: Catalogue, date: str) -> dict[str, Price]:
    found: dict[str, Price] = {}
    for offer in offers:
        kind = catalogue.class_of(offer)
        if kind is None or offer.usd_per_hour <= 0:
            continue
        best = found.get(kind.name)
        if best is None or offer.usd_per_hour < best.usd_per_hour:
            found[kind.name] = Price(
                vendor=offer.vendor,
                tier=offer.tier,
                usd_per_hour=offer.usd_per_hour,
                date=date,
                source="the vendor's offers",
            )
    return found
