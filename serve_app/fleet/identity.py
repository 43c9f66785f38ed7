"""The identity of this worker to an orchestrator: one per machine.

The environment is an argument, so that the rules can be tested without it.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from musetalk_pipeline.files import write_atomically
from serve_app.config.environment import Environment


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
    write_atomically(path, fresh)
    return fresh


def worker_id(env: Environment, *, fallback: str) -> str:
    """Return this machine's identity, the first variable of docs/protocol.md's order that is set.

    One machine is one worker, however many jobs it runs at once. `fallback` is used if none is set.
    """
    return env.machine_id or fallback


def buffer_worker_id(env: Environment, *, host: str) -> str:
    """Return the identity of a buffer worker: `BUFFER_WORKER_ID`, else `buffer-<hostname>`."""
    return env.buffer_worker_id or f"buffer-{host}"
