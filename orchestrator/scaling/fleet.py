"""What scaling asks of a provider of machines, and how it hands its decisions over."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Protocol, cast

from orchestrator.scaling.values import Decision

logger = logging.getLogger(__name__)


class MachineState(StrEnum):
    """The life of a rented machine. One that is gone is not listed any more.

    A machine that runs has a worker once that sends heartbeats, which is a fact of the store.
    """

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that costs money, or will soon. `age_s` counts from when it was asked for."""

    worker_id: str
    gpu_class: str
    state: MachineState
    age_s: float


class FleetProvider(Protocol):
    """Rents machines and gives them back. All calls may be repeated at any time."""

    async def want(self, gpu_class: str, count: int) -> None:
        """Have `count` machines of a class that are not draining, starting new ones if needed.

        It never ends a machine by itself: with more than `count`, lost ones are only not replaced.
        """

    async def have(self) -> Sequence[Machine]:
        """Return all machines, of all classes."""

    async def drain(self, worker_ids: Collection[str]) -> None:
        """Let these finish their jobs, and end them then. Unknown ids are ignored."""

    async def close(self) -> None:
        """Give up what belongs to this process. Machines that outlive it may go on."""


class FleetError(Exception):
    """A provider did not do what it was asked for. The next step asks again."""


def load_provider(path: str, options: Mapping[str, object]) -> FleetProvider:
    """Return the provider that the configuration names, such as
    `orchestrator.scaling.dry_run.DryRun`, made with `options` as keyword arguments.

    Raises:
        ValueError: there is no such class, or it does not take these options.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"The provider {path!r} cannot be loaded: {exc}.") from exc
    try:
        return cast(FleetProvider, kind(**options))
    except TypeError as exc:
        raise ValueError(f"The provider {path!r} does not take its options: {exc}.") from exc


def choose_to_drain(
    machines: Iterable[Machine], busy: Collection[str], count: int
) -> tuple[str, ...]:
    """Return the `count` machines of a class that are missed least.

    Those that are still starting come first, then idle ones, then busy ones; of equals, the
    youngest, because what has run for long is likely to go on running.
    """
    order = {MachineState.STARTING: 0, MachineState.RUNNING: 1}
    candidates = [machine for machine in machines if machine.state in order]
    candidates.sort(
        key=lambda one: (
            one.worker_id in busy,
            order[one.state],
            one.age_s,
            one.worker_id,
        )
    )
    return tuple(machine.worker_id for machine in candidates[: max(count, 0)])


async def apply(
    decisions: Iterable[Decision],
    providers: Mapping[str, FleetProvider],
    busy: Collection[str],
) -> None:
    """Hand decisions to their providers. One that fails does not hold up the others.

    `busy` has the ids of workers that run a job. A provider's `FleetError` is logged; the next step
    sees what came of this one.
    """
    for decision in decisions:
        provider = providers.get(decision.provider)
        if provider is None:
            logger.error("no such provider", extra={"provider": decision.provider})
            continue
        try:
            await _apply_one(decision, provider, busy)
        except FleetError:
            logger.exception("a decision could not be carried out", extra=_facts(decision))


async def _apply_one(decision: Decision, provider: FleetProvider, busy: Collection[str]) -> None:
    await provider.want(decision.gpu_class, decision.wanted)
    machines = [one for one in await provider.have() if one.gpu_class == decision.gpu_class]
    active = sum(one.state is not MachineState.DRAINING for one in machines)
    surplus = choose_to_drain(machines, busy, active - decision.wanted)
    if surplus:
        await provider.drain(surplus)
    if decision.wanted != decision.had:
        logger.info("workers wanted", extra=_facts(decision))


def _facts(decision: Decision) -> dict[str, object]:
    return {
        "provider": decision.provider,
        "gpu_class": decision.gpu_class,
        "had": decision.had,
        "wanted": decision.wanted,
        "reason": decision.reason,
    }
