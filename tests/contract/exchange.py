"""The predecessor's exchange with its orchestrator, call by call, and how ours is held against it.

predecessor_exchange.json has one example of each call of its main, buffer and pushed (`queue`)
workers: path, body and answer, field by field as docs/protocol.md §2 fixes them. Ours must have the
same paths, the same keys and the same kinds of values; what it adds is named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tests.contract.fake_orchestrator import Call

Worker = Literal["main", "buffer", "queue"]

# docs/protocol.md §9: who does not know them ignores them.
ADDED = {"heartbeat": {"jobs"}}

# Phases that the predecessor did not tell of buffer and pushed jobs, and the call with their form.
_LATER = {f"progress {phase}": "progress downloading" for phase in ("encoding", "uploading")}
ADDED_CALLS: dict[Worker, dict[str, str]] = {"main": {}, "buffer": _LATER, "queue": _LATER}

RECORDED: dict[Worker, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("predecessor_exchange.json").read_text()
)


def recorded(worker: Worker, call: str) -> dict[str, Any]:
    """Return one call of the recording."""
    [found] = [entry for entry in RECORDED[worker] if entry["call"] == call]
    return found


def name_of(call: Call) -> str:
    """Return what the recording calls a call like this one."""
    if call.kind == "heartbeat":
        return f"heartbeat {call.body['status']}"
    if call.kind == "progress":
        return f"progress {call.body['phase']}"
    return f"final {call.body['status']}" if call.kind == "final" else call.kind


def assert_like_the_predecessor(worker: Worker, calls: Iterable[Call]) -> None:
    """Hold every call against the recorded one of its name; every recorded one must have come."""
    known = {entry["call"]: entry for entry in RECORDED[worker]}
    came: set[str] = set()
    for call in calls:
        name = name_of(call)
        came.add(name)
        entry = known[ADDED_CALLS[worker].get(name, name)]
        assert call.path == entry["path"], name
        assert call.headers["content-type"] == "application/json"
        assert call.headers["x-internal-api-key"]
        added = ADDED.get(call.kind, set())
        assert call.body.keys() - added == entry["body"].keys(), name
        for field, value in entry["body"].items():
            assert shape(call.body[field]) == shape(value), f"{name}: {field}"
    assert known.keys() <= came, "a call of the predecessor's did not come"


def shape(value: object) -> object:
    """Return the kinds of a value and of all within it, and an object's keys: `system_info` and
    `metrics` have exactly their own.
    """
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__
