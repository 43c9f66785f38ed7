"""What the cells of a fleet are, from the environment. Variables begin with `FLEET_`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.rental.values import RegistryLogin


class FleetSettings(BaseSettings):
    """One fleet. `{flavour}` in the image is replaced by the flavour of the GPU class."""

    model_config = SettingsConfigDict(env_prefix="FLEET_", frozen=True, extra="ignore")

    cluster: str = Field("fleet", description="The name of the fleet, a part of its machines'.")
    image: str = Field(
        "", description="The worker image, by tag. `{flavour}` becomes `cu126` or `cu13`."
    )
    orchestrator_url: str = Field(
        "",
        validation_alias=AliasChoices("FLEET_ORCHESTRATOR_URL", "ORCHESTRATOR_BASE_URL"),
        description="Where the cells poll, and where they are drained.",
    )
    worker_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("FLEET_WORKER_KEY", "INTERNAL_API_KEY"),
        description="The key that the cells send to the orchestrator.",
    )
    admin_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("FLEET_ADMIN_KEY", "ORCHESTRATOR_ADMIN_KEY"),
        description="The key with which cells are drained.",
    )
    worker_type: str = Field("main", description="The tier: `main`, `transient` or `expensive`.")
    interruptible: bool = Field(
        True, description="Whether the vendor may take machines away; they are cheaper."
    )
    disk_gb: int = Field(60, ge=10, description="The disk of a machine in GB.")
    vcpus: int = Field(4, ge=1, description="The processors of a machine, where they are chosen.")
    memory_mb: int = Field(16384, ge=1024, description="The memory of a machine in MB.")
    shm_mb: int = Field(8192, ge=64, description="/dev/shm in MB, where it can be chosen.")
    ssh_public_key: Path | None = Field(
        None, description="A file with a public key; TensorDock needs one."
    )
    registry_server: str = Field("docker.io", description="The registry of a private image.")
    registry_username: str = Field("", description="The user at the registry.")
    registry_password: SecretStr = Field(SecretStr(""), description="The user's token there.")
    registry_id: str | None = Field(
        None, description="The id of a login that is stored at the vendor; RunPod needs it."
    )
    pass_on: str = Field(
        "",
        validation_alias="FLEET_PASS",
        description="Names of variables, with commas, that the cells get too, such as `B2_KEY_ID`.",
    )
    findings: Path = Field(
        default_factory=lambda: Path.home() / ".local/state/lipsync/catalogue.json",
        description="The file for the prices and speeds that were found.",
    )

    def login(self) -> RegistryLogin | None:
        """Return how the image is pulled, or None for a public one."""
        if not self.registry_username and self.registry_id is None:
            return None
        password = self.registry_password.get_secret_value()
        return RegistryLogin(
            self.registry_username, password, self.registry_server, self.registry_id
        )

    def passed_on(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables that `pass_on` names.

        Raises:
            ValueError: one of them is not set.
        """
        names = [name.strip() for name in self.pass_on.split(",") if name.strip()]
        missing = [name for name in names if not environment.get(name)]
        if missing:
            raise ValueError(f"FLEET_PASS names variables that are not set: {missing}.")
        return {name: environment[name] for name in names}

    def public_key(self) -> str | None:
        """Return the public key, or None if there is none."""
        return self.ssh_public_key.read_text().strip() if self.ssh_public_key else None
