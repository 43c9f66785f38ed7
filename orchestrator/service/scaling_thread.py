"""Runs the scaling loop in a thread and an event loop of its own.

A provider that blocks, or that uses much time, therefore delays no claim.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from orchestrator.service.fleet_file import FleetPlan
from orchestrator.service.scaling_loop import ScalingLoop
from orchestrator.store.store import JobStore

logger = logging.getLogger(__name__)

END_S = 90.0  # for providers that let their workers finish


class ScalingThread:
    """Runs `run` until `stop`. The thread does not keep the process from ending."""

    def __init__(self, run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="scaling", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = END_S) -> None:
        """Ask the loop to end, and wait for it. A provider that hangs is left behind."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("the scaling loop did not end in time; a provider hangs")

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run(self._stopping))


def scaling_thread(store: JobStore, plan: FleetPlan) -> ScalingThread:
    """Return the thread of this process's scaling loop, which has not been started."""
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return ScalingThread(ScalingLoop(store, plan, holder).run)
