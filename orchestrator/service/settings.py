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

from orchestrator.net.addresses import AddressPolicy
from orchestrator.outputs.settings import BucketSettings
from orchestrator.routing import OverflowRule, RoutingRules
from orchestrator.service.fleet_file import FleetFileError, FleetPlan, read_fleet_file
from orchestrator.store.database import open_engine
from orchestrator.store.values import Rules
from orchestrator.webhooks.posting import signing_key

API_VERSION = "0.1.0"
MIN_KEY_CHARS = 16
UPLOAD_MARGIN_S = 300  # for clocks that differ, and for uploads that have begun
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
    max_attempt_hours: float = Field(
        12.0,
        gt=0,
        le=144,
        validation_alias="ORCHESTRATOR_MAX_ATTEMPT_HOURS",
        description="A worker that has held a job for so long loses it. Signed addresses of "
        "outputs are valid a little longer.",
    )
    output_endpoint: str | None = Field(
        None,
        validation_alias="ORCHESTRATOR_OUTPUT_ENDPOINT",
        description="The S3 endpoint of the bucket that workers without storage keys upload to, "
        "such as `https://s3.us-west-004.backblazeb2.com`. Set it with the next three.",
    )
    output_bucket: str | None = Field(
        None, validation_alias="ORCHESTRATOR_OUTPUT_BUCKET", description="The bucket's name."
    )
    output_key_id: str | None = Field(
        None, validation_alias="ORCHESTRATOR_OUTPUT_KEY_ID", description="The id of its key."
    )
    output_secret: SecretStr | None = Field(
        None, validation_alias="ORCHESTRATOR_OUTPUT_SECRET", description="The key itself."
    )
    output_region: str | None = Field(
        None,
        validation_alias="ORCHESTRATOR_OUTPUT_REGION",
        description="Its region, if the endpoint does not contain it; else `us-east-1`.",
    )
    output_prefix: str = Field(
        "avatar/outputs",
        max_length=200,
        validation_alias="ORCHESTRATOR_OUTPUT_PREFIX",
        description="The first part of all names in the bucket.",
    )
    output_public_url: str | None = Field(
        None,
        validation_alias="ORCHESTRATOR_OUTPUT_PUBLIC_URL",
        description="Where anybody can read the bucket. Without it, readers get addresses that are "
        "signed for seven days, anew each time that they read the job.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        validation_alias="WEBHOOK_SECRET",
        description="What the secrets of clients' webhooks are made from: `whsec_` and the base64 "
        "of 24 to 64 random bytes. Without it, `webhook_url` is refused.",
    )
    webhook_hosts: str | None = Field(
        None,
        validation_alias="ORCHESTRATOR_WEBHOOK_HOSTS",
        description="Private hosts or networks that webhooks may be sent to, separated by commas. "
        "The public internet is allowed.",
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

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            signing_key(secret.get_secret_value())
        return secret

    @field_validator("webhook_hosts")
    @classmethod
    def _are_hosts(cls, hosts: str | None) -> str | None:
        AddressPolicy(_split(hosts))
        return hosts

    def webhook_targets(self) -> AddressPolicy:
        """Return where webhooks may be sent to."""
        return AddressPolicy(_split(self.webhook_hosts))

    @property
    def upload_s(self) -> int:
        """How long the addresses of an attempt are valid: longer than its lease can be renewed."""
        return int(self.max_attempt_hours * 3600 + self.lease_s + UPLOAD_MARGIN_S)

    def bucket(self) -> BucketSettings | None:
        """Return the bucket of outputs; None if none is set.

        Raises:
            ValueError: some of its settings are missing or cannot be used.
        """
        given = self.output_endpoint, self.output_bucket, self.output_key_id, self.output_secret
        if given == (None,) * len(given):
            return None
        endpoint, bucket, key_id, secret = given
        if endpoint is None or bucket is None or key_id is None or secret is None:
            names = "ENDPOINT, _BUCKET, _KEY_ID and _SECRET"
            raise ValueError(f"set all of ORCHESTRATOR_OUTPUT_{names}, or none of them")
        return BucketSettings(
            endpoint,
            bucket,
            key_id,
            secret.get_secret_value(),
            self.output_region,
            self.output_prefix,
            self.output_public_url,
        )

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
            max_attempt_s=self.max_attempt_hours * 3600,
            upload_s=None if self.output_endpoint is None else self.upload_s,
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
    try:
        settings.bucket()
    except ValueError as error:
        unknown.append(f"ORCHESTRATOR_OUTPUT_…: {error}.")
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


def _split(hosts: str | None) -> frozenset[str]:
    return frozenset(host.strip() for host in (hosts or "").split(",") if host.strip())


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
