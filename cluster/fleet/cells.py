"""The cells of one fleet at one vendor: renting them, seeing them, draining and returning them.

A cell is one machine with the worker image. Its worker is called like the machine, at every vendor,
so the orchestrator's list and the vendor's can be compared. A cell goes in this order: the
orchestrator lets its worker claim nothing more, its jobs end, and the machine is destroyed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from cluster.catalogue.table import Catalogue, GpuClass, Speed, read_findings, write_findings
from cluster.fleet.orchestrator import Orchestrator
from cluster.fleet.settings import FleetSettings
from cluster.rental.errors import NoCapacity
from cluster.rental.identity import Identity, Kind, as_word, launch_hash
from cluster.rental.ledger import RentState
from cluster.rental.rentals import NAME, Rentals
from cluster.rental.values import Instance, InstanceState, Offer, OfferQuery, RentRequest, Vendor
from orchestrator.scaling.fleet import MachineState

logger = logging.getLogger(__name__)

OFFERS_TRIED = 5
DRAINING = "draining"  # a fact in the ledger
# What vendors set, and what a worker would call itself by before WORKER_ID.
OTHER_IDENTITIES = ("SALAD_MACHINE_ID", "VAST_CONTAINERLABEL", "OCTASPACE_NODE_ID")
# Salad's command replaces the image's entry point too; elsewhere it follows the entry point.
ENTRY_POINT: Mapping[Vendor, tuple[str, ...]] = {Vendor.SALAD: ("tini", "--", "entrypoint")}


@dataclass(frozen=True, slots=True)
class Cell:
    """A machine of a fleet."""

    instance: Instance
    gpu_class: str
    is_draining: bool

    @property
    def is_active(self) -> bool:
        """Return whether it takes jobs, or will soon."""
        return self.instance.state.is_useful and not self.is_draining

    @property
    def worker_id(self) -> str:
        """Return what its worker is called."""
        assert self.instance.name is not None  # `Rentals.list` returns only machines with a name
        return self.instance.name


class Cells:
    """A fleet at one vendor. Threads may share it."""

    def __init__(
        self,
        rentals: Rentals,
        catalogue: Catalogue,
        settings: FleetSettings,
        orchestrator: Orchestrator | None,
    ) -> None:
        self.rentals = rentals
        self._catalogue = catalogue
        self._settings = settings
        self._orchestrator = orchestrator
        self._words = {as_word(one.name): one.name for one in catalogue.classes}

    @property
    def cluster(self) -> str:
        """Return the name of the fleet."""
        return self._settings.cluster

    @property
    def can_drain(self) -> bool:
        """Return whether there is an orchestrator that lets cells finish their jobs."""
        return self._orchestrator is not None

    def find_class(self, name: str) -> GpuClass:
        """Return a GPU class of the catalogue.

        Raises:
            ValueError: there is no such class.
        """
        return self._catalogue.find(name)

    def jobs(self) -> dict[str, int]:
        """Return how many jobs each worker holds; nothing without an orchestrator."""
        return dict(self._orchestrator.jobs()) if self._orchestrator is not None else {}

    def keep_speeds(self, speeds: Mapping[str, Speed]) -> None:
        """Write measured speeds into the file of findings."""
        file = self._settings.findings
        found = read_findings(file)
        write_findings(file, found.model_copy(update={"speeds": found.speeds | dict(speeds)}))

    def list(self, kind: Kind = Kind.CELL) -> tuple[Cell, ...]:
        """Return the cells of this fleet."""
        found = []
        draining = {
            rent.name
            for rent in self.rentals.ledger.live(self.rentals.vendor)
            if DRAINING in rent.facts
        }
        for one in self.rentals.list(self._settings.cluster):
            assert one.identity is not None
            if one.identity.kind is kind:
                word = one.identity.node_type
                found.append(Cell(one, self._words.get(word, word), one.name in draining))
        return tuple(found)

    def in_detail(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Return cells with what the vendor says about each of those that start."""
        return tuple(self._in_detail(one) for one in cells)

    def _in_detail(self, cell: Cell) -> Cell:
        if cell.instance.state is not InstanceState.STARTING:
            return cell
        found = self.rentals.get(cell.instance.instance_id)
        return cell if found is None else replace(cell, instance=found)

    def unclear(self, gpu_class: GpuClass) -> int:
        """Return how many rents of a class have no machine yet, and may still get one."""
        return sum(
            rent.state is RentState.ASKED
            and rent.identity is not None
            and rent.identity.cluster == self.cluster
            and rent.identity.kind is Kind.CELL
            and rent.identity.node_type == as_word(gpu_class.name)
            for rent in self.rentals.ledger.live(self.rentals.vendor)
        )

    def offers(self, gpu_class: GpuClass) -> Sequence[Offer]:
        """Return the offers of a class, the cheapest first."""
        names = gpu_class.names.get(self.rentals.vendor, ())
        needs_names = self.rentals.vendor is Vendor.VAST  # its marketplace is too large otherwise
        query = OfferQuery(
            gpu_names=names if needs_names else (),
            interruptible=self._settings.interruptible,
            min_cuda="13.0" if gpu_class.flavour == "cu13" else "12.6",
            disk_gb=self._settings.disk_gb,
            limit=1000 if not needs_names else 50,
        )
        found = self.rentals.offers(query)
        return [one for one in found if self._catalogue.class_of(one) == gpu_class]

    def rent(self, gpu_class: GpuClass, kind: Kind = Kind.CELL, *words: str) -> Instance:
        """Rent one cell, trying the cheapest offers one after the other.

        `words` are what the image is to do; a worker serves.

        Raises:
            NoCapacity: none of the offers was to be had.
            OverBudget, RentalError, ValueError: as `Rentals.rent` says.
        """
        tried = []
        for offer in self.offers(gpu_class)[:OFFERS_TRIED]:
            try:
                return self.rentals.rent(self._request(gpu_class, offer, kind, words or ("serve",)))
            except NoCapacity as exc:
                tried.append(str(exc))
        reasons = " ".join(tried) or "It has no offer."
        raise NoCapacity(f"{self.rentals.vendor} has no {gpu_class.name} now. {reasons}")

    def drain(self, worker_ids: Collection[str]) -> None:
        """Let these cells claim nothing more. `finish` ends them."""
        for worker_id in worker_ids:
            self.rentals.ledger.add_facts(worker_id, {DRAINING: "1"})
            if self._orchestrator is not None:
                self._orchestrator.drain(worker_id)

    def finish(self, cells: Collection[Cell]) -> int:
        """Destroy those of these draining cells that hold no job. Return how many are left."""
        jobs = self.jobs()
        left = 0
        for cell in cells:
            if jobs.get(cell.worker_id, 0) > 0:
                left += 1
            else:
                self.rentals.destroy(cell.instance.instance_id)
        return left

    def close(self) -> None:
        """Close the connections. The machines go on."""
        self.rentals.close()
        if self._orchestrator is not None:
            self._orchestrator.close()

    def _request(
        self, gpu_class: GpuClass, offer: Offer, kind: Kind, words: tuple[str, ...]
    ) -> RentRequest:
        chosen = self._settings
        if not chosen.image:
            raise ValueError("FLEET_IMAGE is not set.")
        image = chosen.image.replace("{flavour}", gpu_class.flavour)
        environment = self._environment(gpu_class)
        facts: dict[str, JsonValue] = {
            "image": image,
            "words": list(words),
            "names": list(sorted(environment)),
        }
        unset = [part for name in OTHER_IDENTITIES for part in ("-u", name)]
        command = ("env", *unset, f"WORKER_ID={NAME}", "entrypoint", *words)
        return RentRequest(
            Identity(chosen.cluster, kind, as_word(gpu_class.name), launch_hash(facts)),
            offer,
            image,
            command=(*ENTRY_POINT.get(self.rentals.vendor, ()), *command),
            environment=environment,
            login=chosen.login(),
            vcpus=chosen.vcpus,
            memory_mb=chosen.memory_mb,
            shm_mb=chosen.shm_mb,
            disk_gb=chosen.disk_gb,
            min_cuda="13.0" if gpu_class.flavour == "cu13" else "12.6",
            ssh_public_key=chosen.public_key(),
        )

    def _environment(self, gpu_class: GpuClass) -> dict[str, str]:
        chosen = self._settings
        own = {
            "ORCHESTRATOR_BASE_URL": chosen.orchestrator_url,
            "INTERNAL_API_KEY": chosen.worker_key.get_secret_value(),
            "WORKER_TYPE": chosen.worker_type,
            "PROVIDER": str(self.rentals.vendor),
            "GPU_CLASS_NAME": gpu_class.name,
        }
        if gpu_class.batch_size is not None:
            own["BATCH_SIZE"] = str(gpu_class.batch_size)
        return {key: text for key, text in own.items() if text} | chosen.passed_on()


def machine_state(cell: Cell) -> MachineState:
    """Return a cell's state in the words of the scaling loop."""
    state = cell.instance.state
    if cell.is_draining or state in (InstanceState.ENDING, InstanceState.STOPPED):
        return MachineState.DRAINING
    return MachineState.RUNNING if state is InstanceState.RUNNING else MachineState.STARTING
