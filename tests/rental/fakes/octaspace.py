"""OctaSpace, after the types of its SDK; there is no specification to hold it to."""

from __future__ import annotations

import time
import uuid
from typing import Any, ClassVar

from tests.rental.fakes.server import FakeVendor, Reply, Request

NODES = range(300, 340)


class FakeOctaSpace(FakeVendor):
    """Sessions, which have no name. A node has one session at most."""

    vendor: ClassVar[str] = "octaspace"

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, list[str]] = {}

    def accepts(self, headers: Any) -> bool:
        return bool(headers.get("Authorization") == self.key)

    def refusal(self) -> Reply:
        return Reply(401, {"message": "Unauthorized"})

    def answer(self, request: Request) -> Reply:
        match [*request.path.strip("/").split("/"), request.method]:
            case ["services", "mr", "GET"]:
                return Reply(200, [_node(one) for one in NODES if one not in self._taken()])
            case ["services", "mr", "POST"]:
                return self._create(request.body)
            case ["sessions", "GET"]:
                return Reply(200, list(self.machines.values()))
            case ["services", one, what, _] if one in self.machines:
                return self._one(one, what)
        return Reply(404, {"message": "Session not found"})

    def _create(self, items: list[dict[str, Any]]) -> Reply:
        (item,) = items
        fields = "id node_id disk_size image app envs ports http_ports start_command entrypoint"
        assert set(item) == set(fields.split())
        if self.is_full or item["node_id"] in self._taken():
            return Reply(422, {"message": "The node is not available."})
        return Reply(200, [{"uuid": self._add(item["node_id"])}])

    def _one(self, one: str, what: str) -> Reply:
        if what == "stop":
            del self.machines[one]
            return Reply(200, {})
        if what == "logs":
            return Reply(200, {"container": "\n".join(self.logs.get(one, [])), "system": []})
        return Reply(200, self.machines[one])

    def _taken(self) -> set[int]:
        return {one["node_id"] for one in self.machines.values()}

    def _add(self, node_id: int, *, age_s: float = 0.0) -> str:
        one = str(uuid.uuid4())
        self.machines[one] = {
            "uuid": one,
            "service": "mr",
            "node_id": node_id,
            "progress": "pulling image",
            "is_ready": False,
            "duration": 0,
            "started_at": (time.time() - age_s) * 1000,
        }
        return one

    def advance(self) -> None:
        for one in self.machines.values():
            where = {"host": "192.0.2.15", "port": 42022}
            one |= {"is_ready": True, "progress": "service configured", "ssh_direct": where}

    def show(self, machine_id: str, lines: list[str]) -> None:
        """Let a machine have printed these lines."""
        self.logs[machine_id] = lines

    def foreign(self) -> str:
        return self._add(NODES[-1], age_s=3600)


def _node(node_id: int) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "gpus": [{"model": "NVIDIA GeForce RTX 3090", "mem_total_mb": 24576}],
        "cuda_version": "12.8",
        "total_price_usd": 0.2 + node_id / 10000,
        "country": "Germany",
    }
