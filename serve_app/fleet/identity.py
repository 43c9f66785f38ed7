"""Who this worker is to an orchestrator: its identity, one per machine, and its GPU class.

Environment and detection are arguments, so that all of it can be tested without either.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from musetalk_pipeline.files import write_atomically
from serve_app.config.environment import Environment


def new_worker_id() -> str:
    """Return a random identity. Call once and keep it: see `kept_id`."""
    return f"worker-{uuid.uuid4().hex[:16]}"


def kept_id(state: Path) -> str:
    """Return a random identity that survives restarts: a claim in progress is found by it."""
    path = state / "worker_id"
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if kept:
        return kept
    fresh = new_worker_id()
    write_atomically(path, fresh)
    return fresh


def worker_id(env: Environment, *, fallback: str) -> str:
    """Return the identity of this machine: the first variable of contracts.md's order that is set.

    One machine is one worker, however many jobs it runs at a time. `fallback` is the random one.
    """
    return env.machine_id or fallback


def buffer_worker_id(env: Environment, *, host: str) -> str:
    """Return the identity of a buffer worker: `BUFFER_WORKER_ID`, else `buffer-<hostname>`."""
    return env.buffer_worker_id or f"buffer-{host}"
