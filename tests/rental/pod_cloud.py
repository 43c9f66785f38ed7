"""RunPod's REST API v2 with pods that are machines of the tests (namespaces.py).

It is the part of the API that a Ray cluster needs. A pod that is created is booted, one that is
deleted is ended at once, whoever asks for it, and one can be lost.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.rental.namespaces import Segment, Slot

KEY = "rpa_test"
PLACE = "US-TX-3"
PRICES = {"NVIDIA RTX 4000 Ada Generation": 0.2, "NVIDIA GeForce RTX 4090": 0.6,
          "NVIDIA GeForce RTX 3090": 0.4, "NVIDIA GeForce RTX 5090": 0.9}  # fmt: skip


@dataclass
class Pod:
    """A pod: what was asked for, and the machine that it is."""

    pod_id: str
    body: dict[str, Any]
    slot: Slot


@dataclass
class PodCloud:
    """The vendor. `requests` are those that were made: the time, the method and the path.

    `taken`: GPUs of which there are none.
    """

    segment: Segment
    url: str = ""
    taken: set[str] = field(default_factory=set)
    pods: dict[str, Pod] = field(default_factory=dict)
    requests: list[tuple[float, str, str]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _turn: int = 0

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer POST /v2/pods."""
        with self._lock:
            free = [slot for slot in self.segment.slots if slot not in self.segment.running]
            if body["gpu"]["id"] in self.taken or not free:
                text = "There are no instances currently available"
                return 400, {"title": "Bad Request", "status": 400, "detail": text}
            # In turn, so that a new machine does not get the address of one that was lost.
            slot = min(
                free, key=lambda one: (self.segment.slots.index(one) < self._turn, one.private_ip)
            )
            self._turn = self.segment.slots.index(slot) + 1
            pod = Pod(secrets.token_hex(7), body, slot)
            own = {"RUNPOD_POD_ID": pod.pod_id, "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": self.url}
            self.segment.boot(slot, pod.pod_id, own | body["env"])
            self.pods[pod.pod_id] = pod
            return 201, self.view(pod)

    def end(self, pod_id: str) -> bool:
        """End a pod at once, as its deletion and the loss of its machine do."""
        with self._lock:
            pod = self.pods.pop(pod_id, None)
            if pod is not None:
                self.segment.end(pod.slot)
            return pod is not None

    def of_type(self, node_type: str) -> list[Pod]:
        """Return the pods whose names say that they are of this type."""
        with self._lock:
            return [pod for pod in self.pods.values() if f"--{node_type}--" in pod.body["name"]]

    def view(self, pod: Pod) -> dict[str, Any]:
        """Return a pod as the API describes it."""
        slot, body = pod.slot, pod.body
        ssh = {"host": slot.public_ip, "port": slot.public_port, "username": "root",
               "command": f"ssh root@{slot.public_ip} -p {slot.public_port}"}  # fmt: skip
        return {
            "id": pod.pod_id, "name": body["name"], "status": "RUNNING",
            "actions": ["stop", "restart", "terminate"], "image": body["image"], "args": "",
            "disk": body["disk"], "mounts": {}, "ports": body["ports"], "env": body["env"],
            "registry": None, "gpu": {"id": body["gpu"]["id"], "count": 1}, "cloud": "SECURE",
            "dataCenterId": PLACE, "cudaVersion": "12.8", "template": None, "locked": False,
            "cost": PRICES[body["gpu"]["id"]], "ssh": {"proxy": None, "direct": ssh},
            "globalNetworking": {"enabled": True, "ip": slot.private_ip}, "runtime": None,
            "createdAt": "2026-11-26T00:00:00Z", "startedAt": "2026-11-26T00:00:00Z",
        }  # fmt: skip

    def catalog(self) -> dict[str, Any]:
        """Return the GPUs."""
        return {
            "gpus": [
                {"id": name, "name": name, "memory": 24, "manufacturer": "NVIDIA", "secure": True,
                 "community": False, "price": {"secure": price, "community": 0.0},
                 "availability": "HIGH",
                 "dataCenters": [{"id": PLACE, "availability": "HIGH"}]}
                for name, price in PRICES.items()
            ]
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: PodCloud

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _may(self) -> bool:
        self.cloud.requests.append((time.monotonic(), self.command, self.path))
        if self.headers.get("Authorization") == f"Bearer {KEY}":
            return True
        self._answer(401, {"title": "Unauthorized", "status": 401})
        return False

    def do_GET(self) -> None:
        if not self._may():
            return
        path, cloud = self.path.split("?")[0], self.cloud
        if path == "/v2/pods":
            self._answer(200, {"pods": [cloud.view(pod) for pod in list(cloud.pods.values())]})
        elif path == "/v2/catalog/gpus":
            self._answer(200, cloud.catalog())
        elif path == "/v2/catalog/datacenters":
            self._answer(200, {"dataCenters": [{"id": PLACE, "globalNetwork": True}]})
        elif (pod := cloud.pods.get(path.rpartition("/")[2])) is not None:
            self._answer(200, cloud.view(pod))
        else:
            self._answer(404, {"title": "Not Found", "status": 404})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._may():
            self._answer(*self.cloud.create(body))

    def do_DELETE(self) -> None:
        if self._may():
            self._answer(204 if self.cloud.end(self.path.rpartition("/")[2]) else 404)


@contextmanager
def pod_cloud(segment: Segment) -> Iterator[PodCloud]:
    """Serve the API at the operator's address until the block ends."""
    cloud = PodCloud(segment)
    listening = segment.listen()
    handler = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(listening.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    host, port = listening.getsockname()
    cloud.url = f"http://{host}:{port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
