"""Salad: container groups on other people's gaming PCs. One group of one replica is one machine.

One replica for each group, so that a certain machine can be given back. What production has taught
is checked before a call: groups start by themselves (`/start` hangs), display names have no
parentheses, a name is never used twice, and images are named by tag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, JsonValue, TypeAdapter

from cluster.rental.errors import NotOffered
from cluster.rental.http import VendorHttp
from cluster.rental.identity import Kind
from cluster.rental.values import (
    Instance,
    InstanceState,
    Offer,
    OfferQuery,
    RegistryLogin,
    RentRequest,
    Ssh,
    Vendor,
)

_STATES: Final = {
    "pending": InstanceState.STARTING,
    "deploying": InstanceState.STARTING,
    "running": InstanceState.RUNNING,
    "stopped": InstanceState.STOPPED,
    "succeeded": InstanceState.STOPPED,
    "failed": InstanceState.FAILED,
}
_VRAM: Final = re.compile(r"(\d+)\s*GB", re.IGNORECASE)
_LOG_HOURS: Final = 24
MAX_ENV_CHARS: Final = 1000  # the specification


class _Price(BaseModel):
    priority: str | None
    price: float


class _GpuClass(BaseModel):
    id: str
    name: str
    prices: list[_Price]
    is_high_demand: bool = False


class _GpuClasses(BaseModel):
    items: list[_GpuClass]


class _Counts(BaseModel):
    running_count: int = 0


class _State(BaseModel):
    status: str
    description: str | None = None
    instance_status_counts: _Counts = _Counts()


class _Group(BaseModel):
    name: str
    current_state: _State
    create_time: datetime


class _Groups(BaseModel):
    items: list[_Group]


class _Replica(BaseModel):
    state: str
    pulling_progress: float | None = None
    ssh_ip: str | None = None
    ssh_port: int | None = None
    ssh_host_key_fingerprint: str | None = None


class _Replicas(BaseModel):
    instances: list[_Replica]


class _LogEntry(BaseModel):
    text_log: str | None = None


class _LogPage(BaseModel):
    items: list[_LogEntry]


_CLASSES, _GROUP, _GROUPS = TypeAdapter(_GpuClasses), TypeAdapter(_Group), TypeAdapter(_Groups)
_REPLICAS, _LOGS = TypeAdapter(_Replicas), TypeAdapter(_LogPage)


class Salad:
    """A client of SaladCloud's public API."""

    vendor = Vendor.SALAD

    def __init__(self, http: VendorHttp, organization: str, project: str) -> None:
        self._http = http
        self._organization = f"/organizations/{organization}"
        self._groups = f"{self._organization}/projects/{project}/containers"

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return the GPU classes: at priority `batch` if they may be taken away, else `high`."""
        answer = self._http.call("GET", f"{self._organization}/gpu-classes")
        tier = "batch" if query.interruptible else "high"
        wanted = {name.casefold() for name in query.gpu_names}
        found = []
        for one in self._http.read_as(_CLASSES, answer).items:
            price = next((price.price for price in one.prices if price.priority == tier), None)
            if price is None or (wanted and not {one.id, one.name.casefold()} & wanted):
                continue
            if query.max_usd_per_hour is None or price <= query.max_usd_per_hour:
                found.append(_offer(one, tier, price))
        return sorted(found, key=lambda offer: offer.usd_per_hour)[: query.limit]

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Create a group of one replica."""
        made = self._http.create("POST", self._groups, group_body(request, name))
        return self._instance(self._http.read_as(_GROUP, made))

    def list(self) -> Sequence[Instance]:
        """Return all container groups of the project; the API has no pages."""
        found = self._http.read_as(_GROUPS, self._http.call("GET", self._groups))
        return [self._instance(group) for group in found.items]

    def get(self, instance_id: str) -> Instance | None:
        """Return a group, with the address of its replica's sshd if there is one."""
        path = f"{self._groups}/{instance_id}"
        found = self._http.call("GET", path, missing_ok=True)
        if found is None:
            return None
        group = self._http.read_as(_GROUP, found)
        replicas = self._http.call("GET", f"{path}/instances", missing_ok=True)
        if replicas is None:
            return self._instance(group)
        return self._instance(group, self._http.read_as(_REPLICAS, replicas).instances)

    def stop(self, instance_id: str) -> None:
        """Stop a group. It costs nothing then."""
        self._http.call("POST", f"{self._groups}/{instance_id}/stop", missing_ok=True)

    def destroy(self, instance_id: str) -> None:
        """Delete a group."""
        self._http.call("DELETE", f"{self._groups}/{instance_id}", missing_ok=True)

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Return what the container has printed within the last day, at most 100 lines."""
        now = datetime.now(UTC)
        query = {
            "start_time": (now - timedelta(hours=_LOG_HOURS)).isoformat(),
            "end_time": now.isoformat(),
            "query": f'resource.labels.container_group_name = "{instance_id}"',
            "page_size": min(lines, 100),
            "sort_order": "desc",
        }
        answer = self._http.call("POST", f"{self._organization}/log-entries", body=query)
        page = self._http.read_as(_LOGS, answer)
        return "\n".join(entry.text_log or "" for entry in reversed(page.items))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _instance(self, group: _Group, replicas: Sequence[_Replica] = ()) -> Instance:
        ssh = next((_ssh(one) for one in replicas if one.ssh_ip), None)
        return Instance(
            Vendor.SALAD,
            group.name,
            _state(group.current_state),
            name=group.name,
            detail=_detail(group.current_state, replicas),
            ssh=ssh,
            started_at=group.create_time,
        )


def group_body(request: RentRequest, name: str) -> dict[str, JsonValue]:
    """Return the body that creates a group.

    Raises:
        ValueError: the request breaks one of Salad's rules.
    """
    if "@" in request.image:
        raise ValueError("Salad refuses images by digest: name the image by a tag.")
    if request.wants_private_network:
        raise NotOffered("Salad's machines cannot reach each other.")
    too_long = [key for key, text in request.environment.items() if len(text) > MAX_ENV_CHARS]
    if too_long:
        raise ValueError(f"Salad limits variables to {MAX_ENV_CHARS} characters: {too_long}.")
    container: dict[str, Any] = {
        "image": request.image,
        "resources": {
            "cpu": request.vcpus,
            "memory": request.memory_mb,
            "shm_size": request.shm_mb,
            "gpu_classes": [request.offer.offer_id],
            "storage_amount": request.disk_gb * 10**9,
        },
        "priority": request.offer.tier or "batch",
        # An empty value is refused, and one that is not set means the same to the worker.
        "environment_variables": {key: text for key, text in request.environment.items() if text},
    }
    if request.command:
        container["command"] = list(request.command)
    if request.login is not None:
        container["registry_authentication"] = _login(request.login)
    is_measurement = request.identity.kind is Kind.BENCH
    return {
        "name": name,
        "display_name": f"{request.identity.cluster} {request.identity.node_type}",
        "autostart_policy": True,
        "replicas": 1,
        "restart_policy": "never" if is_measurement else "always",
        "container": container,
    }


def _login(login: RegistryLogin) -> dict[str, JsonValue]:
    if login.server == "docker.io":
        return {
            "docker_hub": {
                "username": login.username,
                "personal_access_token": login.password,
            }
        }
    return {"basic": {"username": login.username, "password": login.password}}


def _offer(one: _GpuClass, tier: str, price: float) -> Offer:
    memory = _VRAM.search(one.name)
    return Offer(
        Vendor.SALAD,
        one.id,
        one.name,
        price,
        tier=tier,
        vram_gb=float(memory.group(1)) if memory else None,
        is_scarce=one.is_high_demand,
    )


def _state(state: _State) -> InstanceState:
    """Return the state of a group. One that runs may have no replica yet, or not any more."""
    found = _STATES.get(state.status, InstanceState.STARTING)
    if found is InstanceState.RUNNING and state.instance_status_counts.running_count == 0:
        return InstanceState.STARTING
    return found


def _detail(state: _State, replicas: Sequence[_Replica]) -> str:
    """Return the states of a group and of its replicas, such as `deploying: downloading 43 %`."""
    group = " ".join(filter(None, (state.status, state.description)))
    parts = []
    for one in replicas:
        is_pulling = one.state == "downloading" and one.pulling_progress is not None
        parts.append(f"{one.state} {one.pulling_progress:.0f} %" if is_pulling else one.state)
    return f"{group}: {', '.join(parts)}" if parts else group


def _ssh(replica: _Replica) -> Ssh:
    return Ssh(
        replica.ssh_ip or "",
        replica.ssh_port or 22,
        host_key_fingerprint=replica.ssh_host_key_fingerprint,
    )
