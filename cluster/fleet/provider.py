"""What the orchestrator's scaling loop rents machines with: its `FleetProvider` for a vendor.

The configuration of the loop names `cluster.fleet.provider:RentedFleet` (or, with a dot instead of
the colon, where it takes that). What is rented and with which keys is in the environment
(settings.py, rental/settings.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from cluster.catalogue.table import load_catalogue
from cluster.fleet.cells import Cell, Cells
from cluster.fleet.orchestrator import Orchestrator, OrchestratorDown
from cluster.fleet.settings import FleetSettings
from cluster.rental.clients import open_rentals
from cluster.rental.errors import NoCapacity, OverBudget, RentalError
from cluster.rental.values import InstanceState, Vendor
from orchestrator.scaling.fleet import FleetError, Machine, MachineState

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0  # guesses


class RentedFleet:
    """The cells of one vendor, as the scaling loop sees them.

    After no capacity, or a broken budget, a class is left alone for a pause that doubles each
    time. Machines that have failed are returned, and the next `want` replaces them.
    """

    def __init__(
        self,
        vendor: str,
        cells: Cells | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = FleetSettings()
        self._catalogue = load_catalogue(settings.findings)
        self._cells = cells or open_cells(Vendor(vendor), settings)
        self._clock = clock
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._turn = asyncio.Lock()  # `want` counts before it rents

    async def want(self, gpu_class: str, count: int) -> None:
        """Rent machines until `count` of the class are not draining.

        Raises:
            FleetError: not all of them could be rented.
        """
        async with self._turn:
            await self._asked(self._want, gpu_class, count)

    async def have(self) -> Sequence[Machine]:
        """Return the machines, and end draining ones that hold no job any more.

        Raises:
            FleetError: the vendor does not say.
        """
        return await self._asked(self._have)

    async def drain(self, worker_ids: Collection[str]) -> None:
        """Let these claim nothing more, and end those that hold no job.

        Raises:
            FleetError: at least one could not be ended.
        """
        await self._asked(self._drain, frozenset(worker_ids))

    async def close(self) -> None:
        """Close the connections. The machines go on, and `lipsync fleet down` ends them."""
        await asyncio.to_thread(self._cells.close)

    async def _asked(self, call: Callable[..., Found], *given: object) -> Found:
        """Call in a thread; what fails at a vendor is a `FleetError`."""
        try:
            return await asyncio.to_thread(call, *given)
        except (RentalError, OrchestratorDown, ValueError) as exc:
            raise FleetError(str(exc)) from exc

    def _want(self, gpu_class: str, count: int) -> None:
        now = self._clock()
        if now < self._not_before.get(gpu_class, now):
            return
        kind = self._catalogue.find(gpu_class)
        cells = [one for one in self._cells.list() if one.gpu_class == kind.name]
        active = sum(_state(one) in (MachineState.STARTING, MachineState.RUNNING) for one in cells)
        try:
            for _ in range(count - active):
                self._cells.rent(kind)
        except (NoCapacity, OverBudget):
            pause_s = min(2 * self._pauses.get(gpu_class, FIRST_PAUSE_S / 2), LONGEST_PAUSE_S)
            self._pauses[gpu_class] = pause_s
            self._not_before[gpu_class] = now + pause_s
            raise
        self._pauses.pop(gpu_class, None)

    def _have(self) -> Sequence[Machine]:
        cells = self._cells.list()
        lost = [one for one in cells if one.instance.state is InstanceState.FAILED]
        for one in lost:
            logger.warning("machine failed", extra={"worker_id": one.worker_id})
            self._cells.rentals.destroy(one.instance.instance_id)
        draining = [one for one in cells if one.is_draining and one not in lost]
        if draining:
            self._cells.finish(draining)
            cells = self._cells.list()
        asked = {one.name: one for one in self._cells.rentals.ledger.live()}
        now = self._clock()
        found = []
        for cell in cells:
            rent = asked.get(cell.worker_id)
            started = cell.instance.started_at
            since = rent.asked_at if rent else started.timestamp() if started else now
            if cell.instance.state is not InstanceState.FAILED:
                found.append(Machine(cell.worker_id, cell.gpu_class, _state(cell), now - since))
        return tuple(found)

    def _drain(self, worker_ids: frozenset[str]) -> None:
        cells = [one for one in self._cells.list() if one.worker_id in worker_ids]
        self._cells.drain([one.worker_id for one in cells])
        self._cells.finish(cells)


def open_cells(vendor: Vendor, settings: FleetSettings) -> Cells:
    """Return the fleet of the environment at one vendor.

    Raises:
        WrongKey: the key, or what else the vendor needs, is not set.
    """
    orchestrator = None
    if settings.orchestrator_url and settings.admin_key.get_secret_value():
        key = settings.admin_key.get_secret_value()
        orchestrator = Orchestrator(settings.orchestrator_url, key)
    catalogue = load_catalogue(settings.findings)
    return Cells(open_rentals(vendor), catalogue, settings, orchestrator)


def _state(cell: Cell) -> MachineState:
    state = cell.instance.state
    if cell.is_draining or state in (InstanceState.ENDING, InstanceState.STOPPED):
        return MachineState.DRAINING
    return MachineState.RUNNING if state is InstanceState.RUNNING else MachineState.STARTING
