"""SaladCloud."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

from tests.rental.fakes.server import FakeVendor, Reply, Request

RTX_3090 = "a5db5c50-cbcb-4596-ae80-6a0c8090d80f"
RTX_5060TI = "5d6b104d-c029-4357-b179-8b662d0a76b2"
CLASSES = {RTX_3090: ("RTX 3090 (24 GB)", "0.09"), RTX_5060TI: ("RTX 5060 Ti (16 GB)", "0.07")}


class FakeSalad(FakeVendor):
    """Container groups. A name that was used once is never accepted again."""

    vendor: ClassVar[str] = "salad"
    spec_file = "salad.yaml"
    base_path = "/api/public"

    def __init__(self) -> None:
        super().__init__()
        self.used_names: set[str] = set()
        self.logs: dict[str, list[str]] = {}

    def accepts(self, headers: Any) -> bool:
        return bool(headers.get("Salad-Api-Key") == self.key)

    def answer(self, request: Request) -> Reply:
        path = request.path.removeprefix("/api/public/organizations/acme")
        if path == "/gpu-classes":
            return Reply(200, {"items": [_class(key) for key in CLASSES]})
        if path == "/log-entries":
            return self._log(request.body)
        name = path.removeprefix("/projects/lips/containers").strip("/")
        if not name:
            if request.method == "POST":
                return self._create(request.body)
            return Reply(200, {"items": list(self.machines.values())})
        name, _, action = name.partition("/")
        if name not in self.machines:
            return problem(404, "The container group could not be found.")
        if action == "stop":
            self.machines[name]["current_state"]["status"] = "stopped"
            return Reply(202)
        if action == "instances":
            return Reply(200, {"instances": self._replicas(name)})
        if request.method == "DELETE":
            del self.machines[name]
            return Reply(202)
        return Reply(200, self.machines[name])

    def _create(self, body: dict[str, Any]) -> Reply:
        if body["name"] in self.used_names:
            return problem(400, "The name is in use or was in use.")
        if "@sha256:" in body["container"]["image"]:
            return problem(400, "The image must have a tag.")
        if self.is_full:
            return problem(400, "There are not enough resources for this group.")
        assert body["autostart_policy"] is True
        self.used_names.add(body["name"])
        group = self._group(body)
        self.machines[body["name"]] = group
        return Reply(201, group)

    def _group(self, body: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        counts = ("allocating_count", "creating_count", "running_count", "stopping_count")
        given = body["container"]
        container = {
            "command": given.get("command", []),
            "environment_variables": given.get("environment_variables", {}),
            "image": given["image"],
            "resources": given["resources"],
            "priority": given.get("priority"),
            "hash": "sha256:" + "0" * 64,
            "size": 1,
        }
        return {
            "id": str(uuid.uuid4()),
            "name": body["name"],
            "display_name": body["display_name"],
            "organization_name": "acme",
            "project_name": "lips",
            "autostart_policy": True,
            "container": container,
            "country_codes": ["us"],
            "create_time": now,
            "update_time": now,
            "current_state": {
                "status": "deploying",
                "start_time": now,
                "finish_time": now,
                "instance_status_counts": dict.fromkeys(counts, 0),
            },
            "pending_change": False,
            "priority": given.get("priority"),
            "replicas": body["replicas"],
            "restart_policy": body["restart_policy"],
            "version": 1,
            "scheduled-scaling-enabled": False,
            "scaling-actions": [],
        }

    def _replicas(self, name: str) -> list[dict[str, Any]]:
        replica = {
            "id": str(uuid.uuid4()),
            "machine_id": str(uuid.uuid4()),
            "update_time": datetime.now(UTC).isoformat(),
            "version": 1,
        }
        if self.machines[name]["current_state"]["status"] != "running":
            return [replica | {"state": "downloading", "pulling_progress": 42.6}]
        where = {"ssh_ip": "192.0.2.7", "ssh_port": 2207}
        return [replica | {"state": "running", "ready": True} | where]

    def _log(self, query: dict[str, Any]) -> Reply:
        now = datetime.now(UTC).isoformat()
        name = next((name for name in self.logs if f'"{name}"' in query["query"]), "")
        items = [
            {
                "receive_time": now,
                "time": now,
                "severity": "info",
                "resource": {"type": "container", "labels": {"container_group_name": name}},
                "text_log": line,
            }
            for line in reversed(self.logs.get(name, []))
        ]
        return Reply(
            200,
            {
                "items": items[: query["page_size"]],
                "organization_name": "acme",
                "page_min_time": now,
                "page_max_time": now,
            },
        )

    def advance(self) -> None:
        for group in self.machines.values():
            group["current_state"]["status"] = "running"
            group["current_state"]["instance_status_counts"]["running_count"] = 1

    def show(self, machine_id: str, lines: list[str]) -> None:
        """Let a machine have printed these lines."""
        self.logs[machine_id] = lines

    def foreign(self) -> str:
        body = {
            "name": "somebody-elses",
            "display_name": "Theirs",
            "replicas": 1,
            "restart_policy": "always",
            "container": {
                "image": "theirs:1",
                "priority": "batch",
                "resources": {"cpu": 1, "memory": 1024, "gpu_classes": [RTX_3090]},
            },
        }
        self.machines["somebody-elses"] = self._group(body)
        return "somebody-elses"


def problem(status: int, text: str) -> Reply:
    """Return an error as RFC 9457 has it."""
    return Reply(status, {"title": "Problem", "status": status, "detail": text})


def _class(key: str) -> dict[str, Any]:
    name, price = CLASSES[key]
    prices = [{"priority": "batch", "price": price}, {"priority": "high", "price": "0.25"}]
    return {"id": key, "name": name, "prices": prices, "is_high_demand": False}
