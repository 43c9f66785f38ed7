"""Vast."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from tests.rental.fakes.server import FakeVendor, Reply, Request

OFFERS = {number: ("RTX 4090", 0.30 + number / 1000) for number in range(100, 160)}


class FakeVast(FakeVendor):
    """Instances, 25 on a page."""

    vendor: ClassVar[str] = "vast"
    spec_file = "vast.yaml"

    def __init__(self) -> None:
        super().__init__()
        self.next_id = 5000
        self.logs: dict[str, list[str]] = {}
        self.taken: set[int] = set()

    def answer(self, request: Request) -> Reply:
        match [*request.path.strip("/").split("/"), request.method]:
            case ["api", "v0", "bundles", "POST"]:
                return self._search(request.body)
            case ["api", "v0", "asks", ask, "PUT"]:
                return self._accept(int(ask), request.body)
            case ["api", "v1", "instances", "GET"]:
                return self._page(request.query)
            case ["api", "v0", "instances", "request_logs", one, "PUT"]:
                place = f"{self.url}/public-log/{one}"
                return Reply(200, {"success": True, "result_url": place, "msg": ""})
            case ["api", "v0", "instances", one, method]:
                return self._one(one, method, request.body)
        raise AssertionError(request.path)

    def respond(self, request: Request) -> Reply | None:
        if request.path.startswith("/public-log/"):  # a bucket, which has no specification
            lines = self.logs.get(request.path.rpartition("/")[2])
            return Reply(404, text="") if lines is None else Reply(200, text="\n".join(lines))
        return super().respond(request)

    def refusal(self) -> Reply:
        return Reply(401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})

    def _search(self, body: dict[str, Any]) -> Reply:
        names = body.get("gpu_name", {}).get("in", ["RTX 4090"])
        found = [
            {
                "id": number,
                "gpu_name": name,
                "dph_total": price,
                "min_bid": price / 2,
                "gpu_ram": 24564,
                "geolocation": "Sweden, SE",
            }
            for number, (name, price) in OFFERS.items()
            if name in names and number not in self.taken
        ]
        return Reply(200, {"offers": found[: body["limit"]]})

    def _accept(self, ask: int, body: dict[str, Any]) -> Reply:
        if self.is_full or ask in self.taken or ask not in OFFERS:
            text = f"error 404/3603: no_such_ask Instance type by id {ask} is not available."
            return Reply(404, {"success": False, "error": "invalid_args", "msg": text})
        self.taken.add(ask)
        number = self._add(body["label"])
        return Reply(200, {"success": True, "new_contract": number})

    def _add(self, label: str | None) -> int:
        self.next_id += 1
        self.machines[str(self.next_id)] = {
            "id": self.next_id,
            "actual_status": "loading",
            "intended_status": "running",
            "label": label,
            "gpu_name": "RTX 4090",
            "dph_total": 0.4,
            "public_ipaddr": "192.0.2.11",
            "start_date": time.time(),
        }
        return self.next_id

    def _page(self, query: dict[str, str]) -> Reply:
        start, size = int(query.get("after_token", 0)), min(int(query.get("limit", 25)), 25)
        every = list(self.machines.values())
        page = every[start : start + size]
        token = str(start + size) if start + size < len(every) else None
        return Reply(200, {"success": True, "instances": page, "next_token": token})

    def _one(self, one: str, method: str, body: dict[str, Any] | None) -> Reply:
        if one not in self.machines:
            if method == "GET":
                return Reply(200, {})
            text = {"success": False, "error": "not_found", "msg": "Instance not found"}
            return Reply(404, text)
        if method == "DELETE":
            del self.machines[one]
            return Reply(200, {"success": True})
        if method == "PUT":
            assert body is not None
            self.machines[one]["intended_status"] = body["state"]
            return Reply(200, {"success": True})
        facts = {key: value for key, value in self.machines[one].items() if key != "ports"}
        return Reply(200, {"instances": facts})

    def advance(self) -> None:
        for one in self.machines.values():
            one["actual_status"] = "running"
            one["ports"] = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}]}

    def show(self, machine_id: str, lines: list[str]) -> None:
        """Let a machine have printed these lines."""
        self.logs[machine_id] = lines

    def foreign(self) -> str:
        return str(self._add("theirs"))
