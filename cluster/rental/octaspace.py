"""OctaSpace: containers on a marketplace of nodes. A node is rented as a whole.

There is no specification at hand; the bodies follow the types of the vendor's own JavaScript SDK.
A session has no name: the ledger alone knows which sessions are ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from cluster.rental.errors import NoCapacity, NotOffered, OddAnswer
from cluster.rental.http import VendorHttp, from_millis
from cluster.rental.values import (
    Instance,
    InstanceState,
    Offer,
    OfferQuery,
    RentRequest,
    Ssh,
    Vendor,
)

_READY: Final = frozenset({"service configured", "configured", "running", "ready"})


class _Gpu(BaseModel):
    model: str
    mem_total_mb: float | None = None


class _Node(BaseModel):
    node_id: int
    gpus: list[_Gpu] = []
    cuda_version: str | None = None
    total_price_usd: float | None = None
    country: str | None = None


class _Made(BaseModel):
    uuid: str


class _Access(BaseModel):
    host: str
    port: int


class _Prices(BaseModel):
    base_usd: float | None = None


class _Session(BaseModel):
    uuid: str
    service: str = "mr"
    node_id: int
    progress: str | None = None
    is_ready: bool = False
    started_at: float
    public_ip: str | None = None
    ssh_direct: _Access | None = None


class _Logs(BaseModel):
    container: str = ""


_NODES, _MADE = TypeAdapter(list[_Node]), TypeAdapter(list[_Made])
_SESSIONS, _SESSION, _LOGS = (
    TypeAdapter(list[_Session]),
    TypeAdapter(_Session),
    TypeAdapter(_Logs),
)


class OctaSpace:
    """A client of OctaSpace's API."""

    vendor = Vendor.OCTASPACE

    def __init__(self, http: VendorHttp) -> None:
        self._http = http

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return nodes with one GPU and a driver that is new enough."""
        answer = self._http.call("GET", "/services/mr")
        wanted = {name.casefold() for name in query.gpu_names}
        found = []
        for node in self._http.read_as(_NODES, answer):
            if len(node.gpus) != 1 or node.total_price_usd is None:
                continue
            is_wanted = not wanted or node.gpus[0].model.casefold() in wanted
            is_new = node.cuda_version is None or _is_at_least(node.cuda_version, query.min_cuda)
            most = query.max_usd_per_hour
            if is_wanted and is_new and (most is None or node.total_price_usd <= most):
                found.append(_offer(node, node.total_price_usd))
        return sorted(found, key=lambda offer: offer.usd_per_hour)[: query.limit]

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Start a session on a node. `name` is not sent: there is no field for it."""
        made = self._http.create("POST", "/services/mr", [session_body(request)])
        sessions = self._http.read_as(_MADE, made)
        if not sessions:
            raise NoCapacity("octaspace answered without a session.")
        if len(sessions) > 1:
            raise OddAnswer("octaspace started more than one session.")
        return Instance(
            Vendor.OCTASPACE,
            sessions[0].uuid,
            InstanceState.STARTING,
            offer_id=request.offer.offer_id,
            gpu_name=request.offer.gpu_name,
            usd_per_hour=request.offer.usd_per_hour,
        )

    def list(self) -> Sequence[Instance]:
        """Return the sessions of containers that are active; the API has no pages."""
        found = self._http.read_as(_SESSIONS, self._http.call("GET", "/sessions"))
        return [_instance(one) for one in found if one.service == "mr"]

    def get(self, instance_id: str) -> Instance | None:
        """Return a session."""
        found = self._http.call("GET", f"/services/{instance_id}/info", missing_ok=True)
        return None if found is None else _instance(self._http.read_as(_SESSION, found))

    def stop(self, instance_id: str) -> None:
        """Raise: a session that is stopped is gone."""
        raise NotOffered("OctaSpace ends a session when it is stopped: destroy it instead.")

    def destroy(self, instance_id: str) -> None:
        """End a session."""
        self._http.call("POST", f"/services/{instance_id}/stop", missing_ok=True)

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Return the last lines of the container."""
        answer = self._http.call("GET", f"/services/{instance_id}/logs")
        text = self._http.read_as(_LOGS, answer).container
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def session_body(request: RentRequest) -> dict[str, Any]:
    """Return the description of one session."""
    if request.wants_private_network:
        raise NotOffered("OctaSpace's machines cannot reach each other.")
    if request.login is not None:
        raise NotOffered("OctaSpace's API takes no login for a registry: use a public image.")
    return {
        "id": 0,
        "node_id": int(request.offer.offer_id),
        "disk_size": request.disk_gb,
        "image": request.image,
        "app": "",
        "envs": dict(request.environment),
        "ports": list(request.ports),
        "http_ports": [],
        "start_command": shlex.join(request.command),
        "entrypoint": "",
    }


def _offer(node: _Node, price: float) -> Offer:
    gpu = node.gpus[0]
    return Offer(
        Vendor.OCTASPACE,
        str(node.node_id),
        gpu.model,
        price,
        place=node.country or "",
        vram_gb=round(gpu.mem_total_mb / 1024, 1) if gpu.mem_total_mb else None,
    )


def _is_at_least(version: str, least: str) -> bool:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    return numbers(version) >= numbers(least)


def _instance(one: _Session) -> Instance:
    is_up = one.is_ready or (one.progress or "").lower() in _READY
    ssh = one.ssh_direct
    return Instance(
        Vendor.OCTASPACE,
        one.uuid,
        InstanceState.RUNNING if is_up else InstanceState.STARTING,
        detail=one.progress or "",
        offer_id=str(one.node_id),
        ssh=Ssh(ssh.host, ssh.port) if ssh else None,
        public_ip=one.public_ip,
        started_at=from_millis(one.started_at),
    )
