"""The identity of this worker to an orchestrator: one per machine.

The environment is an argument, so that the rules can be tested without it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from serve_app.config.environment import first_set

ID_VARIABLES = ("SALAD_MACHINE_ID", "VAST_CONTAINERLABEL", "OCTASPACE_NODE_ID", "WORKER_ID")


def new_worker_id() -> str:
    """Return a random identity. Call it once and store the result, as `kept_id` does."""
    return f"worker-{uuid.uuid4().hex[:16]}"


def kept_id(state: Path) -> str:
    """Return a random identity that is stored in `state`, so that claims survive a restart."""
    path = state / "worker_id"
    try:
        stored = path.read_text().strip()
    except FileNotFoundError:
        stored = ""
    if stored:
        return stored
    fresh = new_worker_id()
    path.touch(mode=0o600)
    path.write_text(fresh)
    return fresh


def worker_id(env: Mapping[str, str], *, fallback: str) -> str:
    """Return the identity of this machine: the first variable of contracts.md's order that is set.

    One machine is one worker, however many jobs it runs at once. `fallback` is used if none is set.
    """
    return first_set(env, ID_VARIABLES) or fallback


def buffer_worker_id(env: Mapping[str, str], *, host: str) -> str:
    """Return the identity of a buffer worker: `BUFFER_WORKER_ID`, else `buffer-<hostname>`."""
    return first_set(env, ("BUFFER_WORKER_ID",)) or f"buffer-{host}"
