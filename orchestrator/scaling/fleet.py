"""What scaling asks of a provider of machines. Other packages implement `FleetProvider`.

The scaling loop makes one instance for each provider that the configuration names, and calls it
every few seconds. What an implementation has to do:

1. It is a class. The table `[providers.NAME.options]` of the configuration becomes the keyword
   arguments of its constructor, which neither blocks nor calls anybody.
2. It rents what it is asked for and decides nothing. Budget, limits and cooldowns are the loop's.
3. Each call may be repeated at any time, also after the orchestrator has been killed in the middle
   of one: the same `want` again starts nothing twice. So machines have to be recognised after a
   restart, by a name or a label at the provider, and `have` lists only those of this orchestrator.
4. `Machine.worker_id` is the identity with which the worker on that machine will call (docs/
   protocol.md §2). The loop compares it with the workers in the store.
5. A call returns when the request has been accepted. It does not wait for a machine to come up or
   to end. After `CALL_S` it is cancelled, and the next step asks again.
6. What did not work is a `FleetError` with a sentence for the operator, without secrets.
7. `drain` is called once the workers have been asked to claim nothing more, and hold no job any
   more or have had the configured grace. Machines may therefore be ended at once. An implementation
   that can send a signal sends SIGTERM first.

All calls to an instance come from one thread and one event loop, one after the other. An
implementation that blocks harms only the scaling, since claims are answered in other threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Protocol, cast

CALL_S = 20.0  # for each call to a provider


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
    """Rents machines and gives them back. The module says what else an implementation has to do."""

    async def want(self, gpu_class: str, count: int) -> None:
        """Have `count` machines of a class that are not draining, starting new ones if needed.

        It never ends a machine by itself: with more than `count`, lost ones are only not replaced.

        Raises:
            FleetError: not all of them could be asked for.
        """

    async def have(self) -> Sequence[Machine]:
        """Return all machines, of all classes, those too that were only asked for.

        Raises:
            FleetError: the provider does not say.
        """

    async def drain(self, worker_ids: Collection[str]) -> None:
        """End these machines, gracefully where possible. Unknown ids are ignored.

        Raises:
            FleetError: at least one of them could not be ended.
        """

    async def close(self) -> None:
        """Give up what belongs to this process. Machines that outlive it may go on."""


class FleetError(Exception):
    """A provider did not do what it was asked for. The next step asks again."""


def load_provider(path: str, options: Mapping[str, object]) -> FleetProvider:
    """Return the provider that the configuration names, such as
    `orchestrator.scaling.dry_run:DryRun`, made with `options` as keyword arguments.

    Raises:
        ValueError: there is no such class, or it does not take these options.
    """
    module, _, name = path.partition(":")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"The provider {path!r} cannot be loaded: {exc}.") from exc
    try:
        return cast(FleetProvider, kind(**options))
    except (TypeError, ValueError) as exc:
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
