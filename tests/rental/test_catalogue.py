"""The catalogue agrees with what the orchestrator reads from names, and keeps its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.catalogue.table import (
    Findings,
    Price,
    Speed,
    load_catalogue,
    with_prices,
    write_findings,
)
from cluster.fleet.prices import report, table
from cluster.fleet.settings import FleetSettings
from cluster.rental.settings import RentalSettings, VendorSettings
from cluster.rental.values import Offer, Vendor

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = {
    "turing": {"7.5"},
    "ampere": {"8.0", "8.6"},
    "ada": {"8.9"},
    "hopper": {"9.0"},
    "blackwell": {"10.0", "12.0"},
}


def test_each_class_has_the_capability_and_the_flavour_of_its_architecture():
    for one in load_catalogue().classes:
        assert one.compute_capability in CAPABILITIES[one.architecture]
        assert one.flavour == "cu13" or one.architecture != "blackwell"
        assert one.vram_gb > 0


def test_the_speed_of_the_h200_is_the_measured_one():
    rows = json.loads((ROOT / "benchmarks/results/engine-h200.json").read_text())["rows"]
    speed = load_catalogue().find("h200-141gb").speed
    found = {row["generate"]["frames_per_s"] for row in rows if row["batch_size"] == 32}
    assert speed.frames_per_s in found
    assert speed.source.startswith("benchmarks/results/engine-h200.json")


@pytest.mark.parametrize(
    ("vendor", "offer_id", "gpu_name", "expected"),
    [
        ("salad", "a5db5c50-cbcb-4596-ae80-6a0c8090d80f", "anything", "RTX-3090-24GB"),
        ("salad", "unknown", "RTX 5060 Ti (16 GB)", "RTX-5060Ti-16GB"),
        ("runpod", "NVIDIA GeForce RTX 4090", "RTX 4090", "RTX-4090-24GB"),
        ("vast", "71", "RTX 3060", "RTX-3060-12GB"),
        ("octaspace", "7", "NVIDIA GeForce RTX 5090", "RTX-5090-32GB"),
        ("tensordock", "loc/h100-sxm5-80gb", "h100-sxm5-80gb", "H100-80GB"),
        ("vast", "71", "RTX 3060 Ti", None),
    ],
)
def test_an_offer_is_of_the_class_that_its_card_is(vendor, offer_id, gpu_name, expected):
    found = load_catalogue().class_of(Offer(Vendor(vendor), offer_id, gpu_name, 0.1))
    assert (found.name if found else None) == expected


def test_findings_replace_older_prices_of_the_same_vendor(tmp_path):
    new = Price(vendor=Vendor.SALAD, usd_per_hour=0.11, date="2026-11-26", source="offers")
    other = Price(vendor=Vendor.VAST, usd_per_hour=0.13, date="2026-11-26", source="offers")
    speed = Speed(frames_per_s=50, date="2026-11-26", source="bench")
    found = with_prices(Findings(speeds={"RTX-3090-24GB": speed}), "RTX-3090-24GB", [new])
    write_findings(tmp_path / "f.json", with_prices(found, "RTX-3090-24GB", [other]))
    catalogue = load_catalogue(tmp_path / "f.json")
    assert set(catalogue.find("RTX-3090-24GB").prices) == {new, other}
    first = table(catalogue)[0]
    assert (first.gpu_class.name, first.usd_per_minute) == (
        "RTX-3090-24GB",
        pytest.approx(0.11 / 3600 * 1500 / 50),
    )
    assert "| RTX-3090-24GB | ampere | salad |  | 0.110 | 2026-11-26 | 50 | 0.00092 |" in report(
        catalogue, "2026-11-26"
    )


def test_every_setting_is_documented():
    text = (ROOT / "docs/cluster.md").read_text()
    fleet = {f"FLEET_{name.upper()}" for name in FleetSettings.model_fields} - {"FLEET_PASS_ON"}
    rental = {f"RENTAL_{name.upper()}" for name in RentalSettings.model_fields}
    vendor = {f"…_{name.upper()}" for name in VendorSettings.model_fields}
    assert [name for name in fleet | rental | vendor if f"`{name}`" not in text] == []
