"""TensorDock, after the examples in its documents; there is no specification to hold it to."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from tests.rental.fakes.server import FakeVendor, Reply, Request

GPU = "geforcertx4090-pcie-24gb"


class FakeTensorDock(FakeVendor):
    """Virtual machines. A list has neither addresses nor ports."""

    vendor: ClassVar[str] = "tensordock"

    def answer(self, request: Request) -> Reply:
        match [*request.path.strip("/").split("/"), request.method]:
            case ["api", "v2", "locations", "GET"]:
                return Reply(200, {"data": {"locations": [_location()]}})
            case ["api", "v2", "instances", "GET"]:
                rows = [_row(one) for one in self.machines.values()]
                return Reply(200, {"data": {"instances": rows}})
            case ["api", "v2", "instances", "POST"]:
                return self._create(request.body["data"])
            case ["api", "v2", "instances", one, *rest] if one in self.machines:
                return self._one(one, rest)
        return Reply(404, {"error": "Instance not found"})

    def refusal(self) -> Reply:
        return Reply(401, {"error": "Unauthorized"})

    def _create(self, data: dict[str, Any]) -> Reply:
        given = data["attributes"]
        assert data["type"] == given["type"] == "virtualmachine"
        assert given["resources"]["storage_gb"] >= 100
        assert given["resources"]["gpus"] == {GPU: {"count": 1}}
        assert given["ssh_key"] and isinstance(given["cloud_init"]["runcmd"], list)
        if self.is_full:
            return Reply(200, {"status": 400, "error": "No available nodes: no capacity"})
        one = self._add(given["name"])
        made = {"type": "virtualmachine", "id": one, "name": given["name"], "status": "creating"}
        return Reply(200, {"data": made})

    def _add(self, name: str) -> str:
        one = str(uuid.uuid4())
        self.machines[one] = {"id": one, "name": name, "status": "creating"}
        return one

    def _one(self, one: str, rest: list[str]) -> Reply:
        match rest:
            case ["DELETE"]:
                del self.machines[one]
                return Reply(200, {"data": {"type": "success", "attributes": {"message": "gone"}}})
            case ["stop", "POST"]:
                self.machines[one]["status"] = "stopped"
                attributes = {"status": "stopping"}
                return Reply(
                    200, {"data": {"type": "instance", "id": one, "attributes": attributes}}
                )
        forwards = [{"internal_port": 22, "external_port": 20022}]
        where = {"ipAddress": "192.0.2.13", "portForwards": forwards}
        return Reply(200, {"type": "instance", **self.machines[one], **where})

    def advance(self) -> None:
        for one in self.machines.values():
            one["status"] = "running"

    def foreign(self) -> str:
        return self._add("theirs")


def _row(one: dict[str, Any]) -> dict[str, Any]:
    attributes = {"name": one["name"], "status": one["status"]}
    return {"type": "VM", "id": one["id"], "attributes": attributes}


def _location() -> dict[str, Any]:
    gpu = {
        "v0Name": GPU,
        "displayName": "NVIDIA GeForce RTX 4090 PCIe 24GB",
        "max_count": 4,
        "price_per_hr": 0.35,
        "resources": {"max_vcpus": 32, "max_ram_gb": 128, "max_storage_gb": 2000},
        "pricing": {"per_vcpu_hr": 0.003, "per_gb_ram_hr": 0.002, "per_gb_storage_hr": 0.00005},
        "network_features": {"dedicated_ip_available": True, "port_forwarding_available": True},
    }
    return {"id": "loc-1", "city": "Austin", "country": "United States", "tier": 3, "gpus": [gpu]}
