"""A provider of machines for tests of the scaling loop: it keeps what it is asked for.

Providers are other packages' code, so a double of one stands at the edge of the orchestrator.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import ClassVar

from orchestrator.scaling.fleet import FleetError, Machine, MachineState


class FleetDesk:
    """Machines come up when a test says so, through their workers' heartbeats.

    `fault`: "raise" refuses to rent, "bug" fails with another error, "hang" never answers, and
    "block" blocks the thread until `unblock` is set.
    """

    made: ClassVar[list[FleetDesk]] = []

    def __init__(self, fault: str | None = None, refuses: str = "want") -> None:
        self.fault, self.refuses = fault, refuses
        self.machines: dict[str, Machine] = {}
        self.ended: list[str] = []
        self.is_closed = False
        self.called = threading.Event()
        self.unblock = threading.Event()
        self.made.append(self)

    async def want(self, gpu_class: str, count: int) -> None:
        """Rent machines that are still starting."""
        await self._fail("want")
        there = [one for one in self.machines.values() if one.gpu_class == gpu_class]
        active = sum(one.state is not MachineState.DRAINING for one in there)
        for _ in range(count - active):
            name = f"machine-{len(self.machines) + len(self.ended) + 1}"
            self.machines[name] = Machine(name, gpu_class, MachineState.STARTING, 0.0)

    async def have(self) -> Sequence[Machine]:
        """List them."""
        await self._fail("have")
        return tuple(self.machines.values())

    async def drain(self, worker_ids: Collection[str]) -> None:
        """End them at once, as a provider that cannot send signals does."""
        await self._fail("drain")
        for worker_id in worker_ids:
            if self.machines.pop(worker_id, None) is not None:
                self.ended.append(worker_id)

    async def close(self) -> None:
        """Remember it."""
        self.is_closed = True

    def come_up(self) -> list[str]:
        """Let all machines run. Return their workers' ids."""
        for name, machine in self.machines.items():
            self.machines[name] = replace(machine, state=MachineState.RUNNING)
        return list(self.machines)

    async def _fail(self, call: str) -> None:
        if self.fault is None or call != self.refuses:
            return
        self.called.set()
        if self.fault == "raise":
            raise FleetError("The account has no credit left.")
        if self.fault == "bug":
            raise ZeroDivisionError
        if self.fault == "block":
            self.unblock.wait(60)
            return
        await asyncio.Event().wait()
