"""What scaling sees: the machines of the providers, joined with the workers in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.gpus import read_gpu_class
from orchestrator.scaling.fleet import Machine, MachineState
from orchestrator.scaling.learnt import NOTHING_LEARNT, Learnt
from orchestrator.scaling.values import Machines, Observation, Offer, OfferKey, Work

UNMANAGED_FRAMES_PER_S = 25.0  # of a worker that has no offer, until it has reported (a guess)
Speeds = Mapping[str, Learnt]
"""Frames/s by GPU class."""


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker in the store. `held` counts the jobs that it holds."""

    provider: str
    gpu_class: str
    is_online: bool
    is_drained: bool
    held: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one step is decided on.

    `workers` are by their id, `machines` by provider. `left_out` has the providers that did not
    answer in this step: their machines are those that they had before, and nothing is decided about
    them.
    """

    work: tuple[Work, ...]
    workers: Mapping[str, SeenWorker]
    machines: Mapping[str, Sequence[Machine]]
    speeds: Speeds = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    def is_leaving(self, machine: Machine) -> bool:
        """Return whether a machine takes no more jobs."""
        worker = self.workers.get(machine.worker_id)
        return machine.state is MachineState.DRAINING or (worker is not None and worker.is_drained)


def observe(offers: Iterable[Offer], seen: Seen) -> Observation:
    """Return what a step decides on.

    Workers that no provider rents, such as machines of your own, count as an offer that costs
    nothing and of which there are as many as there are, so that nothing is rented for the work that
    they do. Nobody acts on decisions about them. The same holds for providers that did not answer.
    """
    rented = [_rented(offer, seen) for offer in offers]
    machines = {offer.key: _machines(offer, seen) for offer in rented}
    own = _unmanaged(seen)
    return Observation(
        (*rented, *(_own_offer(key, count, seen.speeds) for key, count in own.items())),
        seen.work,
        machines | {_own_key(key): Machines(ready=count) for key, count in own.items()},
    )


def _rented(offer: Offer, seen: Seen) -> Offer:
    learnt = offer.with_learnt(seen.speeds.get(offer.gpu_class, NOTHING_LEARNT))
    if offer.provider not in seen.left_out:
        return learnt
    there = seen.machines.get(offer.provider, ())
    count = sum(machine.gpu_class == offer.gpu_class for machine in there)
    return replace(learnt, max_workers=count)


def _machines(offer: Offer, seen: Seen) -> Machines:
    ready, draining, starting = 0, 0, []
    for machine in seen.machines.get(offer.provider, ()):
        if machine.gpu_class != offer.gpu_class:
            continue
        worker = seen.workers.get(machine.worker_id)
        if seen.is_leaving(machine):
            draining += 1
        elif worker is not None and worker.is_online:
            ready += 1
        else:
            starting.append(machine.age_s)
    return Machines(ready, tuple(starting), draining)


def _unmanaged(seen: Seen) -> Counter[OfferKey]:
    rented = {machine.worker_id for there in seen.machines.values() for machine in there}
    return Counter(
        (worker.provider, worker.gpu_class)
        for worker_id, worker in seen.workers.items()
        if worker.is_online and not worker.is_drained and worker_id not in rented
    )


def _own_key(key: OfferKey) -> OfferKey:
    return f"not rented: {key[0]}", key[1]


def _own_offer(key: OfferKey, count: int, speeds: Speeds) -> Offer:
    learnt = speeds.get(key[1], NOTHING_LEARNT)
    speed = learnt.frames_per_s(UNMANAGED_FRAMES_PER_S)
    provider, gpu_class = _own_key(key)
    return Offer(provider, gpu_class, read_gpu_class(gpu_class), 0.0, speed, 0.0, count)
