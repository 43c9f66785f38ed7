"""The file that says what may be rented."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.scaling.dry_run import DryRun
from orchestrator.service.fleet_file import read_fleet_file
from orchestrator.service.settings import SettingsError, read_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "orchestrator-scaling.md"
DRY_RUN = "orchestrator.scaling.dry_run:DryRun"
OFFER = """
budget_usd_per_hour = 1
[[offers]]
provider = "salad"
gpu_class = "RTX-3090-24GB"
usd_per_hour = 0.09
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.toml"
    file.write_text(text)
    return file


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    text = PAGE.read_text().split("```toml\n")[1].split("```")[0]
    plan = read_fleet_file(written(tmp_path, text), DRY_RUN)
    assert (plan.rules.budget_usd_per_hour, plan.rules.target_wait_s) == (1.5, 120)
    assert plan.rules.provider_limits == {"salad": 20}
    (offer,) = plan.offers
    assert (offer.key, offer.usd_per_hour) == (("salad", "RTX-3090-24GB"), 0.09)
    assert (offer.gpu.architecture, offer.gpu.vram_gb) == ("ampere", 24)
    assert isinstance(plan.load_fleets()["salad"], DryRun)


def test_without_a_class_nothing_is_rented_and_the_prices_are_known(tmp_path: Path) -> None:
    settings = read_settings({"ORCHESTRATOR_FLEET_FILE": str(written(tmp_path, OFFER))})
    plan = settings.fleet_plan()
    assert plan is not None
    assert plan.fleets == {}
    assert settings.rules(plan).offers == plan.offers


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("budget =", "it is not TOML: "),
        ("budget_usd_per_hour = 1", "offers: Field required."),
        (OFFER + "colour = 1", "offers.0.colour: Extra inputs are not permitted."),
        (OFFER.replace("0.09", "-1"), "offers.0.usd_per_hour: "),
        (OFFER + OFFER.partition("1\n")[2], "two offers have the same provider and gpu_class."),
        (OFFER + "[providers.vast]", "the provider 'vast' has no offer."),
        (OFFER + '[providers.salad]\nfleet = "nowhere:Fleet"', "cannot be loaded"),
        (OFFER + "[providers.salad.options]\ncolour = 1", "does not take its options"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_fault(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = written(tmp_path, text)
    environ = {"ORCHESTRATOR_FLEET": DRY_RUN, "ORCHESTRATOR_FLEET_FILE": str(file)}
    with pytest.raises(SettingsError) as caught:
        read_settings(environ).fleet_plan()
    assert sentence in str(caught.value)
    assert "ORCHESTRATOR_FLEET" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = read_settings({"ORCHESTRATOR_FLEET_FILE": str(tmp_path / "none.toml")})
    with pytest.raises(SettingsError, match=r"none\.toml\): it cannot be read: No such file"):
        settings.fleet_plan()


def test_a_class_without_a_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs ORCHESTRATOR_FLEET_FILE"):
        read_settings({"ORCHESTRATOR_FLEET": DRY_RUN})
