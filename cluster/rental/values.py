"""What is asked of a vendor, and what it answers, in words that all vendors share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from cluster.rental.identity import Identity, read_name


class Vendor(StrEnum):
    """Who rents machines out. The values are those of `PROVIDER`."""

    SALAD = "salad"
    RUNPOD = "runpod"
    VAST = "vast"
    TENSORDOCK = "tensordock"
    OCTASPACE = "octaspace"


class InstanceState(StrEnum):
    """The life of a rented machine. One that is gone is not listed any more."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"  # it may still cost something, for its disk
    ENDING = "ending"
    FAILED = "failed"  # it will not recover: destroy it

    @property
    def is_useful(self) -> bool:
        """Return whether work can be expected of it, now or soon."""
        return self in (InstanceState.STARTING, InstanceState.RUNNING)


@dataclass(frozen=True, slots=True)
class Ssh:
    """Where a machine's own sshd can be reached, with file transfer and forwarding."""

    host: str
    port: int
    user: str = "root"
    host_key_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class OfferQuery:
    """Which offers are wanted.

    `gpu_names` are the vendor's own ids or names of classes, any of which will do; the catalogue
    has them. None of them means all. `interruptible` machines are cheaper and may be taken away.
    """

    gpu_names: tuple[str, ...] = ()
    max_usd_per_hour: float | None = None
    interruptible: bool = False
    min_cuda: str = "12.8"
    disk_gb: int = 60
    needs_private_network: bool = False
    needs_ssh: bool = False
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine with one GPU that can be rented now.

    `offer_id` is what a rent names: a GPU class where the vendor chooses the machine (Salad,
    RunPod), else a certain machine. `tier` is the vendor's word for the price's kind, such as
    `batch`, `secure` or `bid`. `place` is a data centre or a country. `usd_per_hour` is for the
    whole machine with the disk of the query.
    """

    vendor: Vendor
    offer_id: str
    gpu_name: str
    usd_per_hour: float
    tier: str = ""
    place: str = ""
    vram_gb: float | None = None
    is_scarce: bool = False
    has_private_network: bool = False


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """How a vendor pulls a private image. `registry_id` is an id at vendors that store logins."""

    username: str = ""
    password: str = field(default="", repr=False)
    server: str = "docker.io"
    registry_id: str | None = None


@dataclass(frozen=True, slots=True)
class RentRequest:
    """One machine that is to be rented.

    `command` replaces what the image starts, where it is not empty. `environment` is hidden from
    `repr`, because it has keys. `cloud_init_commands` are for vendors of virtual machines: they
    replace the ones that start `image` with docker. `ports` are TCP ports of the container that are
    to be reachable from outside.
    """

    identity: Identity
    offer: Offer
    image: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    login: RegistryLogin | None = None
    vcpus: int = 4
    memory_mb: int = 16384
    shm_mb: int = 8192
    disk_gb: int = 60
    min_cuda: str = "12.8"
    ports: tuple[int, ...] = ()
    wants_ssh: bool = False
    wants_private_network: bool = False
    ssh_public_key: str | None = None
    cloud_init_commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine as its vendor describes it.

    `name` is None at vendors without names; `Rentals` fills it in from the ledger. `detail` is the
    vendor's own word for the state. `ssh` and `private_ip` are None while the machine starts, and
    where there are none.
    """

    vendor: Vendor
    instance_id: str
    state: InstanceState
    name: str | None = None
    detail: str = ""
    gpu_name: str | None = None
    offer_id: str | None = None
    usd_per_hour: float | None = None
    ssh: Ssh | None = None
    private_ip: str | None = None
    public_ip: str | None = None
    started_at: datetime | None = None

    @property
    def identity(self) -> Identity | None:
        """Return what the name says, or None if the name is not one of ours."""
        return read_name(self.name)
