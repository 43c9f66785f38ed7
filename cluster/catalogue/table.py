"""Reads the catalogue: the file of this package, and newer figures from a file of the user.

Architecture and memory come from the name of a class (orchestrator/gpus.py), so that the workers,
the orchestrator and the launcher mean the same card.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.rental.values import Offer, Vendor
from orchestrator.gpus import read_gpu_class

FRAMES_PER_MINUTE = 60 * 25  # of finished video at 25 frames/s
_MEMORY = re.compile(r"\(?\b\d+\s*-?GB\b\)?", re.IGNORECASE)
_NOISE = re.compile(r"nvidia|geforce|[^a-z0-9]", re.IGNORECASE)


class Price(BaseModel):
    """What a class cost at a vendor on a date."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vendor: Vendor
    tier: str = ""
    usd_per_hour: float = Field(gt=0)
    date: str
    source: str


class Speed(BaseModel):
    """What a card achieved, and how that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames_per_s: float = Field(gt=0)
    date: str
    source: str
    vram_mib: float | None = None


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: str
    flavour: str
    batch_size: int | None = None
    names: dict[Vendor, tuple[str, ...]] = {}
    speed: Speed | None = None
    prices: tuple[Price, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, dict[str, str]] = {}
    classes: tuple[_Row, ...]


class Findings(BaseModel):
    """Newer figures, by class: what `prices` and `bench` have found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: dict[str, tuple[Price, ...]] = {}
    speeds: dict[str, Speed] = {}


@dataclass(frozen=True, slots=True)
class GpuClass:
    """One class of cards. A figure without a source is None or left out."""

    name: str
    architecture: str
    vram_gb: float
    compute_capability: str
    flavour: str
    batch_size: int | None
    names: dict[Vendor, tuple[str, ...]]
    speed: Speed | None
    prices: tuple[Price, ...]

    def usd_per_minute(self, usd_per_hour: float) -> float | None:
        """Return the dollars for a finished minute of video, or None without a speed."""
        if self.speed is None:
            return None
        return usd_per_hour / 3600 * FRAMES_PER_MINUTE / self.speed.frames_per_s


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All classes, in the order of the file."""

    classes: tuple[GpuClass, ...]

    def find(self, name: str) -> GpuClass:
        """Return a class by its name, in any case.

        Raises:
            ValueError: there is no such class.
        """
        for one in self.classes:
            if one.name.casefold() == name.casefold():
                return one
        known = ", ".join(one.name for one in self.classes)
        raise ValueError(f"There is no GPU class {name!r}. The catalogue has {known}.")

    def class_of(self, offer: Offer) -> GpuClass | None:
        """Return the class of an offer, by the vendor's id or by the name of the card."""
        ids = {offer.offer_id.casefold(), offer.gpu_name.casefold()}
        for one in self.classes:
            if ids & {name.casefold() for name in one.names.get(offer.vendor, ())}:
                return one
        bare = _bare(offer.gpu_name)
        same = [one for one in self.classes if _bare(one.name) == bare]
        return same[0] if len(same) == 1 else None


def load_catalogue(findings: Path | None = None) -> Catalogue:
    """Return the catalogue, with the figures of a file of findings if it exists."""
    text = resources.files(__package__).joinpath("gpus.yaml").read_text()
    rows = _File.model_validate(yaml.safe_load(text)).classes
    newer = read_findings(findings) if findings is not None else Findings()
    return Catalogue(tuple(_class(row, newer) for row in rows))


def read_findings(file: Path) -> Findings:
    """Return the findings of a file; none if it does not exist."""
    try:
        return Findings.model_validate_json(file.read_text())
    except FileNotFoundError:
        return Findings()


def write_findings(file: Path, findings: Findings) -> None:
    """Replace the findings of a file, completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(findings.model_dump(mode="json"), indent=1) + "\n")
    os.replace(part, file)


def with_prices(findings: Findings, name: str, prices: Iterable[Price]) -> Findings:
    """Return findings in which a class has these prices at their vendors and no older ones."""
    fresh = tuple(prices)
    vendors = {price.vendor for price in fresh}
    kept = tuple(one for one in findings.prices.get(name, ()) if one.vendor not in vendors)
    return findings.model_copy(update={"prices": findings.prices | {name: kept + fresh}})


def _class(row: _Row, newer: Findings) -> GpuClass:
    gpu = read_gpu_class(row.name)
    if gpu.architecture is None or gpu.vram_gb is None:
        raise ValueError(f"orchestrator/gpus.py cannot read the class {row.name!r}.")
    made = GpuClass(
        row.name,
        gpu.architecture,
        gpu.vram_gb,
        row.compute_capability,
        row.flavour,
        row.batch_size,
        row.names,
        newer.speeds.get(row.name, row.speed),
        row.prices,
    )
    return replace(made, prices=_merged(row.prices, newer.prices.get(row.name, ())))


def _merged(old: Sequence[Price], new: Sequence[Price]) -> tuple[Price, ...]:
    vendors = {price.vendor for price in new}
    return (*new, *(price for price in old if price.vendor not in vendors))


def _bare(name: str) -> str:
    """Return the letters and digits of a card's name without its maker and memory."""
    return _NOISE.sub("", _MEMORY.sub("", name.replace("-", " "))).casefold()
