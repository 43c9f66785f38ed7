"""Ends cells in the right order: no new jobs, the end of their jobs, and only then the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from cluster.fleet.cells import Cell, Cells, machine_state
from orchestrator.scaling.fleet import Machine, choose_to_drain

POLL_S = 5.0


def choose(having: Sequence[Cell], jobs: Mapping[str, int], count: int) -> list[Cell]:
    """Return the `count` cells that are missed least: those that start, then idle, then busy."""
    machines = [Machine(one.worker_id, one.gpu_class, machine_state(one), 0.0) for one in having]
    busy = [worker_id for worker_id, held in jobs.items() if held > 0]
    chosen = set(choose_to_drain(machines, busy, count))
    return [one for one in having if one.worker_id in chosen]


def end_cells(
    cells: Cells,
    chosen: Collection[Cell],
    *,
    grace_s: float,
    say: Callable[[str], None],
    poll_s: float = POLL_S,
) -> None:
    """Drain cells and destroy each once it holds no job.

    After `grace_s` those that still hold one are destroyed too; the orchestrator gives their jobs
    to others.

    Raises:
        ValueError: there is no orchestrator that could drain them.
        OrchestratorDown: nothing was destroyed, because no job could be asked about.
        RentalError: some machines may be left; the same call goes on with them.
    """
    if chosen and grace_s > 0 and not cells.can_drain:
        raise ValueError(
            "ORCHESTRATOR_BASE_URL and ORCHESTRATOR_ADMIN_KEY have to be set so that cells can "
            "finish their jobs. `lipsync fleet down --now` returns machines without that."
        )
    cells.drain([cell.worker_id for cell in chosen])
    deadline = time.monotonic() + grace_s
    left = list(chosen)
    while left and time.monotonic() < deadline:
        busy = cells.finish(left)
        if not busy:
            return
        there = {cell.worker_id for cell in cells.list()}
        left = [cell for cell in left if cell.worker_id in there]
        say(f"{len(left)} of {len(chosen)} cells still hold jobs.")
        time.sleep(min(poll_s, max(deadline - time.monotonic(), 0.0)))
    for cell in left:
        cells.rentals.destroy(cell.instance.instance_id)
