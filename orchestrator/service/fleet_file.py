"""The file that `ORCHESTRATOR_FLEET_FILE` names: which workers can be rented, at what price, within
which limits. It is TOML (docs/orchestrator-scaling.md has an example).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.gpus import read_gpu_class
from orchestrator.scaling import Offer, ScalingRules
from orchestrator.scaling.fleet import FleetProvider, load_provider

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=7 * 24 * 3600)]
MAX_FILE_BYTES = 1_000_000


class FleetFileError(Exception):
    """The file cannot be used. `sentences` has every fault."""

    def __init__(self, path: Path, sentences: tuple[str, ...]) -> None:
        self.sentences = tuple(f"ORCHESTRATOR_FLEET_FILE ({path}): {text}" for text in sentences)
        super().__init__("\n".join(self.sentences))


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Offer(_Table):
    provider: Name
    gpu_class: Name
    usd_per_hour: float = Field(ge=0, le=1000)
    frames_per_s: float = Field(25.0, gt=0, le=100_000)
    startup_s: Seconds = 600.0
    max_workers: int = Field(10, ge=0, le=10_000)

    def offer(self) -> Offer:
        """Return it for routing and scaling."""
        return Offer(**self.model_dump(), gpu=read_gpu_class(self.gpu_class))


class _Provider(_Table):
    fleet: Name | None = None
    max_workers: int | None = Field(None, ge=0, le=10_000)
    options: dict[str, Any] = Field(default_factory=dict)


class _File(_Table):
    budget_usd_per_hour: float = Field(ge=0, le=100_000)
    interval_s: float = Field(5.0, ge=0.05, le=600)
    drain_grace_s: Seconds = 1800.0
    target_wait_s: Seconds = 300.0
    catch_up_s: Seconds = 120.0
    min_use_s: Seconds = 20.0
    give_up_s: Seconds = 1800.0
    cooldown_up_s: Seconds = 30.0
    cooldown_down_s: Seconds = 60.0
    hysteresis: Share = 0.05
    offers: list[_Offer] = Field(min_length=1, max_length=200)
    providers: dict[Name, _Provider] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> _File:
        keys = [(one.provider, one.gpu_class) for one in self.offers]
        if len(set(keys)) < len(keys):
            raise ValueError("two offers have the same provider and gpu_class")
        unknown = set(self.providers) - {one.provider for one in self.offers}
        if unknown:
            raise ValueError(f"the provider {min(unknown)!r} has no offer")
        return self

    def rules(self) -> ScalingRules:
        """Return the rules of scaling."""
        limits = {
            name: one.max_workers
            for name, one in self.providers.items()
            if one.max_workers is not None
        }
        names = {rule.name for rule in fields(ScalingRules)} - {"provider_limits"}
        return ScalingRules(**self.model_dump(include=names), provider_limits=limits)


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What may be rented, and by whom.

    `interval_s` is the pause between two steps. A worker that has been asked to claim nothing more
    is ended when it holds no job, and after `drain_grace_s` in any case. `fleets` has the path and
    the options of each provider; a provider that has no path is only a price.
    """

    offers: tuple[Offer, ...]
    rules: ScalingRules
    interval_s: float = 5.0
    drain_grace_s: float = 1800.0
    fleets: Mapping[str, tuple[str, Mapping[str, object]]] = field(default_factory=dict)

    def load_fleets(self) -> dict[str, FleetProvider]:
        """Make the providers.

        Raises:
            ValueError: one cannot be loaded.
        """
        return {name: load_provider(*chosen) for name, chosen in self.fleets.items()}


def read_fleet_file(path: Path, fleet: str | None) -> FleetPlan:
    """Read the file. `fleet` is the path of the class for providers that name none.

    Raises:
        FleetFileError: it cannot be read or used.
    """
    try:
        with path.open("rb") as source:
            text = source.read(MAX_FILE_BYTES).decode()
        given = _File.model_validate(tomllib.loads(text))
    except OSError as error:
        raise FleetFileError(path, (f"it cannot be read: {error.strerror}.",)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FleetFileError(path, (f"it is not TOML: {error}.",)) from error
    except ValidationError as error:
        raise FleetFileError(path, tuple(_sentences(error))) from None
    return FleetPlan(
        tuple(one.offer() for one in given.offers),
        given.rules(),
        given.interval_s,
        given.drain_grace_s,
        _fleets(given, fleet),
    )


def _fleets(given: _File, fleet: str | None) -> dict[str, tuple[str, Mapping[str, object]]]:
    found: dict[str, tuple[str, Mapping[str, object]]] = {}
    for name in sorted({one.provider for one in given.offers}):
        chosen = given.providers.get(name, _Provider())
        path = chosen.fleet or fleet
        if path is not None:
            found[name] = path, chosen.options
    return found


def _sentences(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, fault['loc'])) or 'the file'}: "
        f"{str(fault['msg']).removeprefix('Value error, ')}."
        for fault in error.errors(include_input=False, include_url=False)
    ]
