"""The settings of the service, read from the environment once, and checked.

Every fault is one sentence. Secrets never appear in messages or in `repr`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.routing import OverflowRule, RoutingRules
from orchestrator.service.fleet_file import FleetFileError, FleetPlan, read_fleet_file
from orchestrator.store.database import open_engine
from orchestrator.store.values import Rules

API_VERSION = "0.1.0"
MIN_KEY_CHARS = 16
DEFAULT_DATABASE = "sqlite:///.state/orchestrator/orchestrator.db"
# Variables that begin so are this service's; an unknown one is a misspelt one.
PREFIX = "ORCHESTRATOR_"
OF_WORKERS = frozenset({"ORCHESTRATOR_BASE_URL"})

Overflow = Annotated[str, Field(pattern=r"^\d{1,7}:\d{1,7}(,\d{1,7}:\d{1,7}){2}$")]


class SettingsError(Exception):
    """The environment cannot be used. `sentences` has every fault."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class Settings(BaseSettings):
    """All settings. Those whose names begin with `ORCHESTRATOR_` belong to this service alone."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=True, hide_input_in_errors=True
    )

    database_url: SecretStr = Field(
        SecretStr(DEFAULT_DATABASE),
        validation_alias="DATABASE_URL",
        description="Where everything is stored: `sqlite:///FILE` or `postgresql://…`.",
    )
    internal_api_key: SecretStr | None = Field(
        None,
        validation_alias="INTERNAL_API_KEY",
        description="The key that all workers share. Without it, each worker needs a token.",
    )
    admin_api_key: SecretStr | None = Field(
        None,
        validation_alias="ORCHESTRATOR_ADMIN_KEY",
        description="The operator's key: all jobs of all clients, workers, drains.",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="ORCHESTRATOR_HOST",
        description="The address to listen on; `0.0.0.0` for all IPv4 addresses of this machine, "
        "`::` for all IPv6 ones.",
    )
    port: int = Field(
        8700, ge=0, le=65535, validation_alias="ORCHESTRATOR_PORT", description="The port."
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        max_length=200,
        validation_alias="ORCHESTRATOR_ROOT_PATH",
        description="The prefix under which a reverse proxy publishes the service, for example "
        "`/queue`. The proxy removes it from what it passes on.",
    )
    trusted_proxies: str = Field(
        "",
        max_length=2000,
        validation_alias="ORCHESTRATOR_TRUSTED_PROXIES",
        description="Addresses or networks of reverse proxies, separated by commas. Only their "
        "`X-Forwarded-Proto` and `X-Forwarded-For` are believed.",
    )
    open_metrics: bool = Field(
        False,
        validation_alias="ORCHESTRATOR_OPEN_METRICS",
        description="Whether `/metrics` needs no key. Otherwise it needs the operator's.",
    )
    lease_s: float = Field(
        30.0,
        ge=5,
        le=3600,
        validation_alias="ORCHESTRATOR_LEASE_S",
        description="A worker that is silent for so long has lost its jobs.",
    )
    max_failures: int = Field(
        3,
        ge=1,
        le=100,
        validation_alias="ORCHESTRATOR_MAX_FAILURES",
        description="Processing errors, each on another machine, after which a job is dead.",
    )
    max_interruptions: int = Field(
        20,
        ge=1,
        le=10_000,
        validation_alias="ORCHESTRATOR_MAX_INTERRUPTIONS",
        description="Lost leases and drains after which a job is dead.",
    )
    keep_days: float = Field(
        30.0,
        gt=0,
        le=3650,
        validation_alias="ORCHESTRATOR_KEEP_DAYS",
        description="How long results and errors of ended jobs are kept.",
    )
    max_queued: int = Field(
        100_000,
        ge=1,
        validation_alias="ORCHESTRATOR_MAX_QUEUED",
        description="Jobs that may wait. More are answered 429.",
    )
    overflow: Overflow = Field(
        "60:20,300:100,600:200",
        validation_alias="ORCHESTRATOR_OVERFLOW",
        description="When jobs overflow into the second, third and fourth tier: an age in seconds, "
        "a colon, and a number of waiting jobs.",
    )
    fleet: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        validation_alias="ORCHESTRATOR_FLEET",
        description="The class that rents workers, as `module:Class`, such as "
        "`orchestrator.scaling.dry_run:DryRun`. Without it, nothing is rented.",
    )
    fleet_file: Path | None = Field(
        None,
        validation_alias="ORCHESTRATOR_FLEET_FILE",
        description="A TOML file: which workers can be rented, their prices, budget and limits. "
        "Without it, no prices are known.",
    )
    requests_per_minute: int = Field(
        600,
        ge=1,
        validation_alias="ORCHESTRATOR_REQUESTS_PER_MINUTE",
        description="Requests of one client key. More are answered 429.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is passed in. The process's variables are `read_settings`'s to read."""
        return (init_settings,)

    @field_validator("internal_api_key", "admin_api_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        value = key.get_secret_value() if key is not None else "x" * MIN_KEY_CHARS
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("use visible ASCII characters only")
        if len(value) < MIN_KEY_CHARS:
            raise ValueError(f"use at least {MIN_KEY_CHARS} characters")
        return key

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for part in filter(None, proxies.split(",")):
            try:
                ip_network(part.strip(), strict=False)
            except ValueError:
                raise ValueError("use IP addresses or networks such as 10.0.0.0/8") from None
        return proxies

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, url: SecretStr) -> SecretStr:
        open_engine(url.get_secret_value()).dispose()
        return url

    def fleet_plan(self) -> FleetPlan | None:
        """Read the fleet file, and try that its providers can be made.

        Raises:
            SettingsError: the file or a provider cannot be used.
        """
        if self.fleet_file is None:
            return None
        try:
            plan = read_fleet_file(self.fleet_file, self.fleet)
            plan.load_fleets()
        except FleetFileError as error:
            raise SettingsError(error.sentences) from error
        except ValueError as error:
            raise SettingsError((f"ORCHESTRATOR_FLEET: {error}",)) from error
        return plan

    def rules(self, plan: FleetPlan | None = None) -> Rules:
        """Return the rules of the store. `plan` has the prices."""
        return Rules(
            lease_s=self.lease_s,
            max_failures=self.max_failures,
            max_interruptions=self.max_interruptions,
            keep_ended_s=self.keep_days * 24 * 3600,
            max_queued=self.max_queued,
            routing=RoutingRules(overflow=_overflow(self.overflow)),
            offers=() if plan is None else plan.offers,
        )


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment. An empty value counts as unset.

    Raises:
        SettingsError: a variable is unknown or has a value that cannot be used.
    """
    environ = os.environ if environ is None else environ
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    given = {name: value for name, value in environ.items() if name in known and value}
    unknown = [
        f"{name} is not a setting of this service."
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known | OF_WORKERS
    ]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError((*unknown, *_sentences(error))) from None
    if unknown:
        raise SettingsError(tuple(unknown))
    shared = settings.internal_api_key, settings.admin_api_key
    if None not in shared and shared[0] == shared[1]:
        text = "INTERNAL_API_KEY and ORCHESTRATOR_ADMIN_KEY must differ: workers have the first."
        raise SettingsError((text,))
    if settings.fleet is not None and settings.fleet_file is None:
        text = "ORCHESTRATOR_FLEET needs ORCHESTRATOR_FLEET_FILE, which says what may be rented."
        raise SettingsError((text,))
    return settings


def _overflow(text: str) -> tuple[OverflowRule, OverflowRule, OverflowRule]:
    limits = [part.split(":") for part in text.split(",")]
    second, third, fourth = (OverflowRule(float(age), int(count)) for age, count in limits)
    return second, third, fourth


def make_folder(database_url: str) -> None:
    """Make the folder of a SQLite file, which only this user may enter.

    Raises:
        SettingsError: it cannot be made.
    """
    if not database_url.startswith("sqlite:///"):
        return
    folder = Path(database_url.removeprefix("sqlite:///").partition("?")[0]).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(
            (f"DATABASE_URL: the folder {folder} cannot be made ({reason}). Name another one.",)
        ) from error


def _sentences(error: ValidationError) -> list[str]:
    return [
        f"{fault['loc'][0]}: {str(fault['msg']).removeprefix('Value error, ')}."
        for fault in error.errors(include_input=False, include_url=False)
    ]
