"""What the orchestrator's scaling loop rents machines with: its `FleetProvider` for a vendor.

The loop's configuration names `cluster.fleet.provider:RentedFleet` with the option `vendor`. What
is rented, and with which keys, is in the environment (settings.py, rental/settings.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from cluster.catalogue.table import load_catalogue
from cluster.fleet.cells import Cell, Cells, machine_state
from cluster.fleet.orchestrator import Orchestrator
from cluster.fleet.settings import FleetSettings
from cluster.rental.clients import open_rentals
from cluster.rental.errors import NoCapacity, OverBudget, RentalError
from cluster.rental.values import InstanceState, Vendor
from orchestrator.scaling.fleet import FleetError, Machine

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0  # guesses


class RentedFleet:
    """The cells of one vendor, as the scaling loop sees them.

    After no capacity, or a broken budget, a class is left alone for a pause that doubles each
    time. Machines that have failed are returned, and the next `want` replaces them.
    """

    def __init__(self, vendor: str, clock: Callable[[], float] = time.time) -> None:
        self._vendor = Vendor(vendor)
        self._clock = clock
        self._opened: Cells | None = None
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        # A call that the loop has given up goes on in its thread, and may still rent.
        self._renting = threading.Lock()

    async def want(self, gpu_class: str, count: int) -> None:
        """Rent machines until `count` of the class are not draining.

        Raises:
            FleetError: not all of them could be rented.
        """
        await self._asked(self._want, gpu_class, count)

    async def have(self) -> Sequence[Machine]:
        """Return the machines of this fleet at the vendor.

        Raises:
            FleetError: the vendor does not say.
        """
        return await self._asked(self._have)

    async def drain(self, worker_ids: Collection[str]) -> None:
        """Return these machines at once: the loop has waited for their jobs.

        Raises:
            FleetError: at least one could not be returned.
        """
        await self._asked(self._return, frozenset(worker_ids))

    async def close(self) -> None:
        """Close the connections. The machines go on, and `lipsync fleet down` ends them."""
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close)

    async def _asked(self, call: Callable[..., Found], *given: object) -> Found:
        """Call in a thread; what fails at a vendor is a `FleetError`."""
        try:
            return await asyncio.to_thread(call, *given)
        except (RentalError, ValueError, OSError) as exc:
            raise FleetError(str(exc)) from exc

    def _cells(self) -> Cells:
        if self._opened is None:
            self._opened = open_cells(self._vendor, FleetSettings())
        return self._opened

    def _want(self, gpu_class: str, count: int) -> None:
        if not self._renting.acquire(blocking=False):
            return
        try:
            now = self._clock()
            if now >= self._not_before.get(gpu_class, now):
                self._rent(gpu_class, count, now)
        finally:
            self._renting.release()

    def _rent(self, gpu_class: str, count: int, now: float) -> None:
        cells = self._cells()
        kind = cells.find_class(gpu_class)
        active = sum(one.is_active and one.gpu_class == kind.name for one in cells.list())
        try:
            for _ in range(count - active - cells.unclear(kind)):
                cells.rent(kind)
        except (NoCapacity, OverBudget):
            pause_s = min(2 * self._pauses.get(gpu_class, FIRST_PAUSE_S / 2), LONGEST_PAUSE_S)
            self._pauses[gpu_class] = pause_s
            self._not_before[gpu_class] = now + pause_s
            raise
        self._pauses.pop(gpu_class, None)

    def _have(self) -> Sequence[Machine]:
        found = self._cells().list()
        for one in found:
            if one.instance.state is InstanceState.FAILED:
                logger.warning("machine failed", extra={"worker_id": one.worker_id})
                self._cells().rentals.destroy(one.instance.instance_id)
        return tuple(
            Machine(one.worker_id, one.gpu_class, machine_state(one), self._age_s(one))
            for one in found
            if one.instance.state is not InstanceState.FAILED
        )

    def _age_s(self, cell: Cell) -> float:
        now, started = self._clock(), cell.instance.started_at
        rents = self._cells().rentals.ledger.live(self._vendor)
        asked_at = next((rent.asked_at for rent in rents if rent.name == cell.worker_id), None)
        if asked_at is None:
            asked_at = started.timestamp() if started is not None else now
        return max(now - asked_at, 0.0)

    def _return(self, worker_ids: frozenset[str]) -> None:
        for one in self._cells().list():
            if one.worker_id in worker_ids:
                self._cells().rentals.destroy(one.instance.instance_id)


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
