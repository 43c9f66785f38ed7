"""TensorDock: virtual machines. The worker's image is started with docker when the machine boots.

There is no specification of this API; the bodies follow the examples in the vendor's documents.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, Field, JsonValue, TypeAdapter

from cluster.rental.errors import CallRefused, NoCapacity, NotOffered, RentalError
from cluster.rental.http import Answer, VendorHttp
from cluster.rental.values import (
    Instance,
    InstanceState,
    Offer,
    OfferQuery,
    RentRequest,
    Ssh,
    Vendor,
)

MIN_DISK_GB: Final = 100
VCPUS, MEMORY_GB = 4, 16  # what the prices of offers are computed for
SYSTEM: Final = "ubuntu2404"
USER: Final = "user"  # of the vendor's Ubuntu images
_STATES: Final = {
    "running": InstanceState.RUNNING,
    "stopped": InstanceState.STOPPED,
    "stoppeddisassociated": InstanceState.STOPPED,
    "deleting": InstanceState.ENDING,
    "failed": InstanceState.FAILED,
    "error": InstanceState.FAILED,
}


class _Pricing(BaseModel):
    per_vcpu_hr: float = 0.0
    per_gb_ram_hr: float = 0.0
    per_gb_storage_hr: float = 0.0


class _Network(BaseModel):
    dedicated_ip_available: bool = False


class _Gpu(BaseModel):
    name: str = Field(alias="v0Name")
    title: str = Field("", alias="displayName")
    max_count: int = 0
    price_per_hr: float
    pricing: _Pricing = _Pricing()
    network: _Network = Field(_Network(), alias="network_features")


class _Location(BaseModel):
    id: str
    country: str = ""
    gpus: list[_Gpu]


class _Locations(BaseModel):
    locations: list[_Location]


class _Forward(BaseModel):
    internal_port: int
    external_port: int


class _Facts(BaseModel):
    name: str | None = None
    status: str | None = None


class _Machine(BaseModel):
    """A machine: what is at its top in one answer is in `attributes` in another."""

    id: str
    name: str | None = None
    status: str | None = None
    attributes: _Facts = _Facts()
    ip: str | None = Field(None, alias="ipAddress")
    forwards: list[_Forward] = Field([], alias="portForwards")


class _Machines(BaseModel):
    instances: list[_Machine]


class _Located(BaseModel):
    data: _Locations


class _Listed(BaseModel):
    data: _Machines


class _Made(BaseModel):
    data: _Machine


_LOCATED, _LISTED, _MADE = TypeAdapter(_Located), TypeAdapter(_Listed), TypeAdapter(_Made)
_MACHINE = TypeAdapter(_Machine)


class TensorDock:
    """A client of TensorDock's API v2."""

    vendor = Vendor.TENSORDOCK

    def __init__(self, http: VendorHttp) -> None:
        self._http = http

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return GPUs by location, with the price of processors, memory and disk included."""
        answer = self._http.call("GET", "/api/v2/locations")
        wanted = {name.casefold() for name in query.gpu_names}
        found = []
        for place in self._http.read_as(_LOCATED, answer).data.locations:
            for gpu in place.gpus:
                names = {gpu.name.casefold(), gpu.title.casefold()}
                if gpu.max_count > 0 and (not wanted or names & wanted):
                    found.append(_offer(place, gpu, query.disk_gb))
        most = query.max_usd_per_hour
        fits = [
            one
            for one in found
            if (most is None or one.usd_per_hour <= most)
            and (one.has_private_network or not query.needs_private_network)
        ]
        return sorted(fits, key=lambda offer: offer.usd_per_hour)[: query.limit]

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Create a virtual machine."""
        made = self._http.create("POST", "/api/v2/instances", machine_body(request, name))
        machine = self._http.read_as(_MADE, made).data
        return _instance(machine.model_copy(update={"name": machine.name or name}))

    def list(self) -> Sequence[Instance]:
        """Return all machines, without their addresses; the API has no pages."""
        answer = self._http.call("GET", "/api/v2/instances")
        return [_instance(one) for one in self._http.read_as(_LISTED, answer).data.instances]

    def get(self, instance_id: str) -> Instance | None:
        """Return a machine with its address."""
        found = self._http.call("GET", f"/api/v2/instances/{instance_id}", missing_ok=True)
        if found is None:
            return None
        inner = found.get("data", found) if isinstance(found, dict) else found
        return _instance(self._http.read_as(_MACHINE, inner))

    def stop(self, instance_id: str) -> None:
        """Stop a machine. Its disk still costs something."""
        self._http.call("POST", f"/api/v2/instances/{instance_id}/stop", missing_ok=True)

    def destroy(self, instance_id: str) -> None:
        """Delete a machine."""
        self._http.call("DELETE", f"/api/v2/instances/{instance_id}", missing_ok=True)

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Raise: the vendor shows no logs."""
        raise NotOffered("TensorDock shows no logs: use `ssh` and `docker logs worker`.")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def explain(answer: Answer) -> RentalError | None:
    """Return what an error means that comes with the status 200."""
    error = answer.fields.get("error")
    if answer.status >= 300 or not error:
        return None
    said = f"tensordock refused: {answer.reason}"
    return NoCapacity(said) if "capacity" in said or "available" in said else CallRefused(said)


def machine_body(request: RentRequest, name: str) -> dict[str, JsonValue]:
    """Return the body that creates a machine.

    Raises:
        ValueError: there is no SSH key, which the vendor requires.
    """
    if request.ssh_public_key is None:
        raise ValueError("TensorDock requires an SSH key: set FLEET_SSH_PUBLIC_KEY to a file.")
    place, _, gpu = request.offer.offer_id.partition("/")
    commands = request.cloud_init_commands or _docker_commands(request)
    attributes: dict[str, Any] = {
        "name": name,
        "type": "virtualmachine",
        "image": SYSTEM,
        "location_id": place,
        "resources": {
            "vcpu_count": request.vcpus,
            "ram_gb": max(request.memory_mb // 1024, 1),
            "storage_gb": max(request.disk_gb, MIN_DISK_GB),
            "gpus": {gpu: {"count": 1}},
        },
        "useDedicatedIp": request.offer.has_private_network,
        "ssh_key": request.ssh_public_key,
        "cloud_init": {"runcmd": list(commands)},
    }
    return {"data": {"type": "virtualmachine", "attributes": attributes}}


def _docker_commands(request: RentRequest) -> tuple[str, ...]:
    """Return what starts the image on a machine whose system has docker and NVIDIA's toolkit."""
    words = ["docker", "run", "-d", "--name", "worker", "--gpus", "all", "--restart", "always"]
    words += ["--shm-size", f"{request.shm_mb}m"]
    for port in request.ports:
        words += ["-p", f"{port}:{port}"]
    for key, text in request.environment.items():
        words += ["-e", f"{key}={text}"]
    commands = [shlex.join([*words, request.image, *request.command])]
    if request.login is not None:
        login = request.login
        before = f"printf %s {shlex.quote(login.password)} | docker login --password-stdin "
        commands.insert(0, before + shlex.join(["-u", login.username, login.server]))
    return tuple(commands)


def _offer(place: _Location, gpu: _Gpu, disk_gb: int) -> Offer:
    rest = gpu.pricing
    price = (
        gpu.price_per_hr
        + rest.per_vcpu_hr * VCPUS
        + rest.per_gb_ram_hr * MEMORY_GB
        + rest.per_gb_storage_hr * max(disk_gb, MIN_DISK_GB)
    )
    return Offer(
        Vendor.TENSORDOCK,
        f"{place.id}/{gpu.name}",
        gpu.name,
        round(price, 5),
        place=place.country,
        has_private_network=gpu.network.dedicated_ip_available,
    )


def _instance(one: _Machine) -> Instance:
    status = one.status or one.attributes.status or ""
    port = next((ahead.external_port for ahead in one.forwards if ahead.internal_port == 22), 22)
    return Instance(
        Vendor.TENSORDOCK,
        one.id,
        _STATES.get(status.lower(), InstanceState.STARTING),
        name=one.name or one.attributes.name,
        detail=status,
        ssh=Ssh(one.ip, port, USER) if one.ip else None,
        public_ip=one.ip,
    )
