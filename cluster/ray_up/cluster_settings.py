"""What this project adds to Ray's cluster file: `provider` and the `node_config` of each type.

Ray checks the rest by its own schema; `cluster_file` puts both together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.rental.values import Vendor

MODULE = "cluster.ray_up.node_provider.RentedNodeProvider"
Topology = Literal["multi", "single"]

WHY_SINGLE = {
    Vendor.SALAD: "Salad's containers cannot be reached by each other: only its HTTPS gateway and "
    "SSH come in",
    Vendor.OCTASPACE: "OctaSpace documents no network between its machines, only ports mapped by "
    "NAT",
    Vendor.VAST: "Vast's machines reach each other only in an overlay inside one physical cluster, "
    "and `provider.overlay` names none",
    Vendor.RUNPOD: "RunPod's pods reach each other only by global networking, and "
    "`provider.global_networking` is not true",
}


class ProviderSettings(BaseModel):
    """`provider:` of a cluster file.

    The fields from `cluster_max_rents` on are not for people: `bootstrap_config` fills them in, so
    that the head has them too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["external"]
    module: Literal["cluster.ray_up.node_provider.RentedNodeProvider"]
    vendor: Vendor
    topology: Topology
    api_key_file: Path = Field(description="A file with the vendor's key, here and on the head.")
    base_url: str | None = Field(None, description="The vendor's API, where it is not the usual.")
    global_networking: bool = Field(False, description="RunPod: pods get an address of their own.")
    overlay: str | None = Field(None, description="Vast: the overlay that all machines are in.")
    usd_per_hour: float = Field(gt=0, description="All machines together may cost so much.")
    rents_per_hour: int = Field(gt=0, le=1000, description="So many machines may be rented.")
    use_internal_ips: Literal[False] = Field(
        False, description="The head is reached from outside, and workers from the head."
    )
    ssh_public_key: str | None = None
    head_launch_hash: str | None = None
    cache_path: str | None = Field(None, alias="_config_cache_path")

    @field_validator("api_key_file")
    @classmethod
    def _is_at_home(cls, path: Path) -> Path:
        if not str(path).startswith("~/"):
            raise ValueError("`api_key_file` must begin with ~/, because the head reads it too")
        return path

    @model_validator(mode="after")
    def _has_a_network(self) -> ProviderSettings:
        if self.topology == "multi" and not self.has_network:
            raise ValueError(
                f"`topology: multi` cannot be rented at {self.vendor}. {WHY_SINGLE[self.vendor]}. "
                "A worker there would join, be lost after 40 s and be rented again without end. "
                "Use `topology: single`, or `lipsync fleet up` for several machines"
            )
        return self

    @property
    def has_network(self) -> bool:
        """Whether each machine of the cluster can reach every port of the others."""
        if self.vendor is Vendor.RUNPOD:
            return self.global_networking
        if self.vendor is Vendor.VAST:
            return self.overlay is not None
        return self.vendor is Vendor.TENSORDOCK


class NodeSettings(BaseModel):
    """`node_config:` of one node type: the machine that is rented for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: tuple[str, ...] = Field(
        min_length=1, description="GPU classes of the catalogue; the cheapest free one is taken."
    )
    image: str = Field(min_length=1, description="The container image, by its tag.")
    usd_per_hour: float = Field(gt=0, description="One machine may cost so much.")
    min_cuda: str = Field("12.8", pattern=r"\d+\.\d+", description="What the driver must support.")
    interruptible: bool = Field(False, description="Cheaper, and may be taken away at any time.")
    vcpus: int = Field(8, ge=1, le=256, description="CPU cores.")
    memory_gb: int = Field(32, ge=1, le=4096, description="Memory.")
    shm_gb: int = Field(8, ge=1, le=1024, description="/dev/shm, where Ray keeps its objects.")
    disk_gb: int = Field(60, ge=10, le=10_000, description="Disk for the image and scratch files.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of the container."
    )
