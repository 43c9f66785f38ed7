"""RunPod: pods, by the REST API v2 (v1 and GraphQL are being retired)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import httpx
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from cluster.rental.http import VendorHttp
from cluster.rental.values import (
    Instance,
    InstanceState,
    Offer,
    OfferQuery,
    RentRequest,
    Ssh,
    Vendor,
)

_STATES: Final = {
    "PROVISIONING": InstanceState.STARTING,
    "STARTING": InstanceState.STARTING,
    "RUNNING": InstanceState.RUNNING,
    "EXITED": InstanceState.STOPPED,
    "ERROR": InstanceState.FAILED,
    "TERMINATED": InstanceState.ENDING,
}
LOG_SILENCE_S: Final = 3.0  # the stream of logs has no end: this long without a line is its end


class _Prices(BaseModel):
    secure: float
    community: float


class _DataCenter(BaseModel):
    id: str
    availability: str = "NONE"


class _Gpu(BaseModel):
    id: str
    name: str
    memory: int
    manufacturer: str
    secure: bool
    community: bool
    price: _Prices
    availability: str | None = None
    data_centers: list[_DataCenter] = Field([], alias="dataCenters")


class _Gpus(BaseModel):
    gpus: list[_Gpu]


class _Place(BaseModel):
    id: str
    global_network: bool = Field(False, alias="globalNetwork")


class _Places(BaseModel):
    places: list[_Place] = Field(alias="dataCenters")


class _Endpoint(BaseModel):
    host: str
    port: int
    username: str


class _Ssh(BaseModel):
    direct: _Endpoint | None = None


class _Network(BaseModel):
    ip: str | None = None


class _PodGpu(BaseModel):
    id: str


class _Pod(BaseModel):
    id: str
    name: str
    status: str
    cost: float
    gpu: _PodGpu | None = None
    ssh: _Ssh
    network: _Network = Field(alias="globalNetworking")
    created_at: datetime = Field(alias="createdAt")


class _Pods(BaseModel):
    pods: list[_Pod]


class _LogLine(BaseModel):
    line: str


_GPUS, _POD, _PODS = TypeAdapter(_Gpus), TypeAdapter(_Pod), TypeAdapter(_Pods)
_PLACES = TypeAdapter(_Places)


class RunPod:
    """A client of RunPod's REST API v2."""

    vendor = Vendor.RUNPOD

    def __init__(self, http: VendorHttp) -> None:
        self._http = http

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return GPU types, in the secure cloud and, if they may be taken away, the community's.

        `place` has the data centres that are joined by the global network, if that is asked for.
        """
        clouds = ["SECURE"]
        if query.interruptible and not query.needs_private_network:
            clouds.append("COMMUNITY")
        joined = self._joined() if query.needs_private_network else frozenset()
        found = []
        for cloud in clouds:
            params = {
                "include": "AVAILABILITY",
                "product": "POD",
                "cloud": cloud,
                "minCudaVersion": query.min_cuda,
            }
            answer = self._http.call("GET", "/v2/catalog/gpus", params=params)
            for gpu in self._http.read_as(_GPUS, answer).gpus:
                offer = _offer(gpu, cloud, query, joined)
                if offer is not None:
                    found.append(offer)
        return sorted(found, key=lambda offer: offer.usd_per_hour)[: query.limit]

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Create a pod with one GPU."""
        made = self._http.create("POST", "/v2/pods", pod_body(request, name))
        return _instance(self._http.read_as(_POD, made))

    def list(self) -> Sequence[Instance]:
        """Return all pods; the API has no pages. Pods of Instant Clusters are not among them."""
        found = self._http.read_as(_PODS, self._http.call("GET", "/v2/pods"))
        return [_instance(pod) for pod in found.pods]

    def get(self, instance_id: str) -> Instance | None:
        """Return a pod."""
        found = self._http.call("GET", f"/v2/pods/{instance_id}", missing_ok=True)
        return None if found is None else _instance(self._http.read_as(_POD, found))

    def stop(self, instance_id: str) -> None:
        """Stop a pod. Its disk still costs something."""
        body = {"action": "stop"}
        self._http.call("POST", f"/v2/pods/{instance_id}/action", body=body, missing_ok=True)

    def destroy(self, instance_id: str) -> None:
        """Terminate a pod and delete its disk."""
        self._http.call("DELETE", f"/v2/pods/{instance_id}", missing_ok=True)

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Return the last lines of the container."""
        params = {"source": "container", "tail": str(min(lines, 5000))}
        with self._http.lines(f"/v2/pods/{instance_id}/logs", params, LOG_SILENCE_S) as stream:
            return "\n".join(_log_lines(stream, lines))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _joined(self) -> frozenset[str]:
        """Return the data centres that the global network joins."""
        answer = self._http.call("GET", "/v2/catalog/datacenters")
        places = self._http.read_as(_PLACES, answer).places
        return frozenset(place.id for place in places if place.global_network)


def pod_body(request: RentRequest, name: str) -> dict[str, Any]:
    """Return the body that creates a pod."""
    ports = [f"{port}/tcp" for port in request.ports]
    if request.wants_ssh and "22/tcp" not in ports:
        ports.append("22/tcp")
    body: dict[str, Any] = {
        "name": name,
        "image": request.image,
        "gpu": {
            "id": request.offer.offer_id,
            "count": 1,
            "minCudaVersion": request.min_cuda,
        },
        "cloud": request.offer.tier or "SECURE",
        "disk": request.disk_gb,
        "env": dict(request.environment),
        "ports": ports,
        "startSsh": request.wants_ssh,
        "globalNetworking": request.wants_private_network,
    }
    if request.command:
        body["args"] = shlex.join(request.command)
    if request.offer.place:
        body["dataCenterIds"] = request.offer.place.split(",")
    if request.login is not None:
        if request.login.registry_id is None:
            raise ValueError("RunPod needs the id of a login that is stored there: registry_id.")
        body["registry"] = request.login.registry_id
    return body


def _offer(gpu: _Gpu, cloud: str, query: OfferQuery, joined: frozenset[str]) -> Offer | None:
    price = gpu.price.secure if cloud == "SECURE" else gpu.price.community
    is_there = gpu.secure if cloud == "SECURE" else gpu.community
    places = [one.id for one in gpu.data_centers if one.id in joined and one.availability != "NONE"]
    wanted = {name.casefold() for name in query.gpu_names}
    is_wanted = not wanted or {gpu.id.casefold(), gpu.name.casefold()} & wanted
    is_cheap = query.max_usd_per_hour is None or price <= query.max_usd_per_hour
    is_free = is_there and price > 0 and gpu.availability != "NONE"
    if not (is_wanted and is_cheap and is_free and gpu.manufacturer == "NVIDIA"):
        return None
    if query.needs_private_network and not places:
        return None
    return Offer(
        Vendor.RUNPOD,
        gpu.id,
        gpu.name,
        price,
        tier=cloud,
        place=",".join(places),
        vram_gb=float(gpu.memory),
        is_scarce=gpu.availability == "LOW",
        has_private_network=bool(places),
    )


def _instance(pod: _Pod) -> Instance:
    ssh = pod.ssh.direct
    return Instance(
        Vendor.RUNPOD,
        pod.id,
        _STATES.get(pod.status, InstanceState.STARTING),
        name=pod.name,
        detail=pod.status,
        offer_id=pod.gpu.id if pod.gpu else None,
        usd_per_hour=pod.cost or None,  # 0 while the pod does not run
        ssh=Ssh(ssh.host, ssh.port, ssh.username) if ssh else None,
        private_ip=pod.network.ip,
        public_ip=ssh.host if ssh else None,
        started_at=pod.created_at,
    )


def _log_lines(stream: Iterator[str], most: int) -> Iterator[str]:
    """Yield the lines of a stream of events until it is silent."""
    count = 0
    try:
        for text in stream:
            if text.startswith("data:") and count < most:
                yield _LogLine.model_validate(json.loads(text.removeprefix("data:"))).line
                count += 1
            if count >= most:
                return
    except (httpx.ReadTimeout, ValidationError, ValueError):
        return
