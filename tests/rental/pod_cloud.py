"""The fake of RunPod whose pods are machines of the tests (namespaces.py).

A pod that is created is booted, and one that is deleted is ended at once, whoever asks for it. All
else is the fake that RunPod's client is tested with, so requests and answers are held to RunPod's
specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.rental.fakes.runpod import FakeRunPod, problem
from tests.rental.fakes.server import Reply
from tests.rental.namespaces import Segment, Slot


class PodCloud(FakeRunPod):
    """RunPod on a segment. `taken`: the GPUs of which there are none."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.segment = segment
        self.taken: set[str] = set()
        self._slots: dict[str, Slot] = {}
        self._next = 0

    def of_type(self, node_type: str) -> list[str]:
        """Return the pods whose names say that they are of this type."""
        with self.lock:
            return [key for key, pod in self.machines.items() if f"--{node_type}--" in pod["name"]]

    def address(self, pod: str) -> str:
        """Return where a pod is reached from outside."""
        return self._slots[pod].public_ip

    def lose(self, machine_id: str) -> None:
        """End a pod at once."""
        super().lose(machine_id)
        self.segment.end(self._slots.pop(machine_id))

    def _create(self, body: dict[str, Any]) -> Reply:
        slot = self._free_slot()
        if body["gpu"]["id"] in self.taken or slot is None:
            return problem(400, "There are no longer any instances available.")
        reply = super()._create(body)
        pod = reply.body
        self._slots[pod["id"]] = slot
        own = {"RUNPOD_POD_ID": pod["id"], "RUNPOD_API_KEY": self.key, "RUNPOD_API_URL": self.url}
        self.segment.boot(slot, pod["id"], own | pod["env"])
        pod["status"] = "RUNNING"
        pod["globalNetworking"]["ip"] = slot.private_ip
        pod["ssh"]["direct"] = {
            "host": slot.public_ip,
            "port": slot.public_port,
            "username": "root",
            "command": f"ssh root@{slot.public_ip} -p {slot.public_port}",
        }
        return reply

    def _free_slot(self) -> Slot | None:
        """Return a slot; in turn, so that no machine gets the address of one that was just lost."""
        slots = self.segment.slots
        for number in range(self._next, self._next + len(slots)):
            slot = slots[number % len(slots)]
            if slot not in self._slots.values():
                self._next = number + 1
                return slot
        return None

    def _one(self, pod: str, rest: list[str]) -> Reply:
        reply = super()._one(pod, rest)
        if pod not in self.machines:
            self.segment.end(self._slots.pop(pod))
        return reply


@contextmanager
def pod_cloud(segment: Segment) -> Iterator[PodCloud]:
    """Serve the API at the operator's address until the block ends."""
    cloud = PodCloud(segment)
    with cloud.running(segment.listen()):
        yield cloud
    assert cloud.wrong == []
