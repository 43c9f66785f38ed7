"""Vast: containers on a marketplace. An offer is one certain machine, or a part of one."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, Field, JsonValue, TypeAdapter

from cluster.rental.errors import NoCapacity, NotOffered, PartialRent, RentalError, VendorDown
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

PAGE: Final = 25  # the most that the API gives at once
MAX_PAGES: Final = 400
MIN_RELIABILITY: Final = 0.95
MAX_ONSTART_CHARS: Final = 4048
LOG_TRIES: Final = 10  # a log is first put into a bucket, which takes some seconds
LOG_PAUSE_S: Final = 1.0
# Machines in these states never recover.
_LOST: Final = frozenset({"exited", "unknown", "offline"})


class _Offer(BaseModel):
    id: int
    gpu_name: str
    dph_total: float
    min_bid: float | None = None
    gpu_ram: float | None = None
    geolocation: str | None = None


class _Offers(BaseModel):
    offers: list[_Offer]


class _Made(BaseModel):
    new_contract: int


class _Port(BaseModel):
    host_port: int = Field(alias="HostPort")


class _Machine(BaseModel):
    id: int
    actual_status: str | None = None
    intended_status: str | None = None
    label: str | None = None
    gpu_name: str | None = None
    dph_total: float | None = None
    public_ipaddr: str | None = None
    # A list in the description of one call, and an object in that of the other.
    ports: dict[str, list[_Port]] | list[JsonValue] | None = None
    start_date: float | None = None


class _Page(BaseModel):
    instances: list[_Machine]
    next_token: str | None = None


class _One(BaseModel):
    instances: _Machine | None = None


class _LogPlace(BaseModel):
    result_url: str


_OFFERS, _MADE, _PAGE = TypeAdapter(_Offers), TypeAdapter(_Made), TypeAdapter(_Page)
_ONE, _LOG_PLACE = TypeAdapter(_One), TypeAdapter(_LogPlace)


class Vast:
    """A client of Vast's API."""

    vendor = Vendor.VAST

    def __init__(self, http: VendorHttp) -> None:
        self._http = http

    def offers(self, query: OfferQuery) -> Sequence[Offer]:
        """Return machines with one GPU; interruptible ones at their least bid."""
        answer = self._http.call("POST", "/api/v0/bundles", body=search_body(query))
        found = self._http.read_as(_OFFERS, answer).offers
        offers = [_offer(one, is_bid=query.interruptible) for one in found]
        most = query.max_usd_per_hour
        cheap = [one for one in offers if most is None or one.usd_per_hour <= most]
        return sorted(cheap, key=lambda offer: offer.usd_per_hour)

    def rent(self, request: RentRequest, name: str) -> Instance:
        """Accept an offer."""
        path = f"/api/v0/asks/{int(request.offer.offer_id)}"
        made = self._http.create("PUT", path, ask_body(request, name))
        contract = self._http.read_as(_MADE, made).new_contract
        return Instance(
            Vendor.VAST,
            str(contract),
            InstanceState.STARTING,
            name=name,
            offer_id=request.offer.offer_id,
            gpu_name=request.offer.gpu_name,
            usd_per_hour=request.offer.usd_per_hour,
        )

    def list(self) -> Sequence[Instance]:
        """Return all instances, page by page."""
        found: list[Instance] = []
        params = {"limit": str(PAGE)}
        for _ in range(MAX_PAGES):
            answer = self._http.call("GET", "/api/v1/instances", params=params)
            page = self._http.read_as(_PAGE, answer)
            found += [_instance(one) for one in page.instances]
            if page.next_token is None:
                return found
            params["after_token"] = page.next_token
        raise VendorDown(f"vast listed more than {MAX_PAGES} pages of instances.")

    def get(self, instance_id: str) -> Instance | None:
        """Return an instance."""
        path = f"/api/v0/instances/{int(instance_id)}"
        found = self._http.call("GET", path, missing_ok=True)
        if found is None:
            return None
        one = self._http.read_as(_ONE, found).instances
        return None if one is None else _instance(one)

    def stop(self, instance_id: str) -> None:
        """Stop an instance. Its disk still costs something."""
        path, body = f"/api/v0/instances/{int(instance_id)}", {"state": "stopped"}
        self._http.call("PUT", path, body=body, missing_ok=True)

    def destroy(self, instance_id: str) -> None:
        """Destroy an instance."""
        self._http.call("DELETE", f"/api/v0/instances/{int(instance_id)}", missing_ok=True)

    def logs(self, instance_id: str, lines: int = 200) -> str:
        """Have the log written into Vast's bucket, and return it."""
        path = f"/api/v0/instances/request_logs/{int(instance_id)}"
        answer = self._http.call("PUT", path, body={"tail": str(lines)})
        place = self._http.read_as(_LOG_PLACE, answer).result_url
        for _ in range(LOG_TRIES):
            text = self._http.fetch_elsewhere(place)
            if text is not None:
                return text
            time.sleep(LOG_PAUSE_S)
        raise VendorDown(f"vast has not written the log of {instance_id} in time.")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def explain(answer: Answer) -> RentalError | None:
    """Return what answers mean that only Vast gives."""
    contract = answer.fields.get("new_contract")
    is_bad = answer.status >= 400 or answer.fields.get("success") is False
    if is_bad and isinstance(contract, int):
        return PartialRent(
            f"vast failed and still made the instance {contract}: {answer.reason}", str(contract)
        )
    if answer.fields.get("error") == "invalid_price":
        return NoCapacity(f"vast answered {answer.status}: {answer.reason}")
    if answer.status < 300 and answer.fields.get("success") is False:
        return NoCapacity(f"vast refused: {answer.reason}")
    return None


def search_body(query: OfferQuery) -> dict[str, Any]:
    """Return the body of a search."""
    body: dict[str, Any] = {
        "limit": query.limit,
        "type": "bid" if query.interruptible else "ondemand",
        "verified": {"eq": True},
        "rentable": {"eq": True},
        "num_gpus": {"in": [1]},
        "reliability": {"gte": MIN_RELIABILITY},
        "cuda_max_good": {"gte": float(query.min_cuda)},
        "disk_space": {"gte": query.disk_gb},
        "allocated_storage": query.disk_gb,
        # Two pairs: the specification demands exactly two of them.
        "order": [["dph_total", "asc"], ["reliability", "desc"]],
    }
    if query.gpu_names:
        # Names have spaces in some of Vast's answers and underscores in others.
        spellings = {name.replace("_", " ") for name in query.gpu_names}
        spellings |= {name.replace(" ", "_") for name in spellings}
        body["gpu_name"] = {"in": sorted(spellings)}
    if query.needs_ssh:
        body["direct_port_count"] = {"gte": 1}
    return body


def ask_body(request: RentRequest, name: str) -> dict[str, Any]:
    """Return the body that accepts an offer."""
    if request.wants_private_network:
        raise NotOffered("Vast's machines reach each other only in an overlay of one cluster.")
    flags = [f"-e {shlex.quote(f'{key}={text}')}" for key, text in request.environment.items()]
    flags += [f"-p {port}:{port}" for port in request.ports]
    body: dict[str, Any] = {
        "image": request.image,
        "label": name,
        "disk": float(request.disk_gb),
        "env": " ".join(flags),
        "runtype": "ssh_direct" if request.wants_ssh else "args",
        "target_state": "running",
        "cancel_unavail": True,
    }
    if request.wants_ssh:
        onstart = "touch ~/.no_auto_tmux\n" + shlex.join(request.command)
        if len(onstart) > MAX_ONSTART_CHARS:
            raise ValueError(f"Vast limits the command to {MAX_ONSTART_CHARS} characters.")
        body["onstart"] = onstart
    elif request.command:
        body["args"] = list(request.command)
    if request.offer.tier == "bid":
        body["price"] = request.offer.usd_per_hour
    if request.login is not None:
        login = request.login
        body["image_login"] = f"-u {login.username} -p {login.password} {login.server}"
    return body


def _offer(one: _Offer, *, is_bid: bool) -> Offer:
    price = one.min_bid if is_bid and one.min_bid is not None else one.dph_total
    return Offer(
        Vendor.VAST,
        str(one.id),
        one.gpu_name,
        price,
        tier="bid" if is_bid else "ondemand",
        place=one.geolocation or "",
        vram_gb=round(one.gpu_ram / 1024, 1) if one.gpu_ram else None,
    )


def _instance(one: _Machine) -> Instance:
    ports = one.ports if isinstance(one.ports, dict) else {}
    direct = ports.get("22/tcp")
    host = (one.public_ipaddr or "").strip()
    return Instance(
        Vendor.VAST,
        str(one.id),
        _state(one),
        name=one.label,
        detail=json.dumps({"actual": one.actual_status, "intended": one.intended_status}),
        gpu_name=one.gpu_name,
        usd_per_hour=one.dph_total,
        ssh=Ssh(host, direct[0].host_port) if direct and host else None,
        public_ip=host or None,
        started_at=datetime.fromtimestamp(one.start_date, UTC) if one.start_date else None,
    )


def _state(one: _Machine) -> InstanceState:
    if one.intended_status == "stopped":
        return InstanceState.STOPPED
    if one.actual_status == "running":
        return InstanceState.RUNNING
    return InstanceState.FAILED if one.actual_status in _LOST else InstanceState.STARTING
