"""RunPod's REST API v2."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

from tests.rental.fakes.server import FakeVendor, Reply, Request

GPUS = {"NVIDIA GeForce RTX 4090": ("RTX 4090", 24, 0.69), "NVIDIA L4": ("L4", 24, 0.43)}
CENTRES = {"EU-RO-1": True, "US-KS-2": True, "OC-AU-1": False}


class FakeRunPod(FakeVendor):
    """Pods."""

    vendor: ClassVar[str] = "runpod"
    spec_file = "runpod-v2.json"

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, list[str]] = {}

    def answer(self, request: Request) -> Reply:
        match [*request.path.strip("/").split("/"), request.method]:
            case ["v2", "catalog", "gpus", "GET"]:
                return Reply(200, {"gpus": [_gpu(key) for key in GPUS]})
            case ["v2", "catalog", "datacenters", "GET"]:
                return Reply(200, {"dataCenters": [_centre(key) for key in CENTRES]})
            case ["v2", "pods", "GET"]:
                return Reply(200, {"pods": list(self.machines.values())})
            case ["v2", "pods", "POST"]:
                return self._create(request.body)
            case ["v2", "pods", pod, *rest] if pod in self.machines:
                return self._one(pod, rest)
        return problem(404, "pod not found")

    def _create(self, body: dict[str, Any]) -> Reply:
        if self.is_full:
            text = "There are no longer any instances available with the requested specifications."
            return problem(400, text)
        pod = self._pod(body)
        self.machines[pod["id"]] = pod
        return Reply(201, pod)

    def _one(self, pod: str, rest: list[str]) -> Reply:
        match rest:
            case ["DELETE"]:
                del self.machines[pod]
                return Reply(204)
            case ["action", "POST"]:
                self.machines[pod] |= {"status": "EXITED", "cost": 0.0, "actions": ["start"]}
            case ["logs", "GET"]:
                events = [
                    {"source": "container", "line": x, "ts": ""} for x in self.logs.get(pod, [])
                ]
                text = "".join(f"id: 1\ndata: {json.dumps(one)}\n\n" for one in events)
                return Reply(200, text=text, headers={"Content-Type": "text/event-stream"})
        return Reply(200, self.machines[pod])

    def _pod(self, body: dict[str, Any]) -> dict[str, Any]:
        network = {"enabled": True, "ip": "10.1.2.3", "internalDns": "x.runpod.internal"}
        is_joined = body.get("globalNetworking", False)
        return {
            "id": uuid.uuid4().hex[:14],
            "name": body["name"],
            "status": "PROVISIONING",
            "actions": ["terminate"],
            "image": body["image"],
            "args": body.get("args", ""),
            "disk": body.get("disk", 20),
            "mounts": {},
            "ports": body.get("ports", []),
            "env": body.get("env", {}),
            "registry": body.get("registry"),
            "gpu": {"id": body["gpu"]["id"], "count": 1},
            "cloud": body.get("cloud", "SECURE"),
            "dataCenterId": (body.get("dataCenterIds") or ["US-KS-2"])[0],
            "cudaVersion": "12.8",
            "ssh": {"proxy": None, "direct": None},
            "template": None,
            "cost": GPUS[body["gpu"]["id"]][2],
            "locked": False,
            "globalNetworking": network if is_joined else {"enabled": False},
            "runtime": None,
            "createdAt": datetime.now(UTC).isoformat(),
            "startedAt": None,
        }

    def advance(self) -> None:
        for pod in self.machines.values():
            pod["status"] = "RUNNING"
            if "22/tcp" in pod["ports"]:
                where = {"host": "192.0.2.9", "port": 40022, "username": "root", "command": "ssh"}
                pod["ssh"]["direct"] = where

    def show(self, machine_id: str, lines: list[str]) -> None:
        """Let a machine have printed these lines."""
        self.logs[machine_id] = lines

    def foreign(self) -> str:
        pod = self._pod({"name": "theirs", "image": "x:1", "gpu": {"id": "NVIDIA L4"}})
        self.machines[pod["id"]] = pod
        return str(pod["id"])


def problem(status: int, text: str) -> Reply:
    """Return an error as RFC 9457 has it."""
    return Reply(status, {"title": "Problem", "status": status, "detail": text})


def _gpu(key: str) -> dict[str, Any]:
    name, memory, price = GPUS[key]
    return {
        "id": key,
        "name": name,
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": {"secure": price, "community": round(price / 2, 3)},
        "maxCount": {"secure": 8, "community": 2},
        "availability": "HIGH",
        "dataCenters": [
            {"id": one, "name": one, "availability": "HIGH"} for one in ("EU-RO-1", "OC-AU-1")
        ],
        "cudaVersions": [{"version": "12.8", "available": True}],
    }


def _centre(key: str) -> dict[str, Any]:
    return {
        "id": key,
        "name": key,
        "region": "EUROPE",
        "globalNetwork": CENTRES[key],
        "networkVolumeTypes": ["STANDARD"],
        "compliance": [],
        "gpuAvailability": [],
        "cpuAvailability": [],
    }
