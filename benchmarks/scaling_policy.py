"""What scaling costs, and how long jobs wait, against Salad's own autoscaler: a simulated day.

    python benchmarks/scaling_policy.py [--jobs 2000 20000 100000] [--max-workers 1000] [--seed 1]

For each number of jobs, the same day of arrivals is done with this project's policy
(`orchestrator.scaling`) for several target waits, and with Salad's, `ceil(queue / n)`, for several
n. The machines are interrupted as often as was measured at Salad, and start as slowly
(scaling_day.py). The last line is one JSON object.

Salad's queue is taken to be the jobs that wait and those that run. With those that wait alone, it
would take the machines of running jobs away whenever none waits. When it has too many machines, it
gives back those that are starting first, and then any. Ours drains.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import project  # noqa: F401
from scaling_day import FPS, Figures, Fleet, Job, State, World, day_of_jobs

from orchestrator.gpus import read_gpu_class
from orchestrator.scaling import (
    Machines,
    Memory,
    Observation,
    Offer,
    ScalingRules,
    Work,
    step,
)
from orchestrator.scaling.learnt import UNKNOWN_FRAMES

PERIOD_S = 30.0  # between two decisions, of both policies
Policy = Callable[[Fleet], Callable[[], None]]


def salad(per_worker: int, max_workers: int) -> Policy:
    """Return Salad's policy with a desired queue length of `per_worker`."""

    def start(fleet: Fleet) -> Callable[[], None]:
        chance = random.Random(0)

        def tick() -> None:
            machines = list(fleet.machines)
            running = sum(machine.state is State.BUSY for machine in machines)
            wanted = min(math.ceil((len(fleet.waiting) + running) / per_worker), max_workers)
            if wanted >= len(machines):
                fleet.ask_for(wanted - len(machines))
                return
            chance.shuffle(machines)
            machines.sort(key=lambda machine: machine.state is not State.STARTING)
            for machine in machines[: len(machines) - wanted]:
                fleet.take_away(machine)

        return tick

    return start


class Ours:
    """This project's policy. It is told only what an orchestrator would know."""

    def __init__(self, fleet: Fleet, rules: ScalingRules, max_workers: int) -> None:
        world = fleet.world
        gpu_class = "RTX-3090-24GB"
        self._fleet, self._rules = fleet, rules
        self._offer = Offer(
            "salad",
            gpu_class,
            read_gpu_class(gpu_class),
            world.usd_per_hour,
            world.frames_per_s,
            world.half_up_s,
            max_workers,
        )
        self._memory: Memory = {}

    def tick(self) -> None:
        """Observe, decide, and have it done."""
        done = step(self._observe(), self._memory, self._rules, self._fleet.now)
        self._memory = done.memory
        for decision in done.decisions:
            active = self._fleet.active()
            self._fleet.ask_for(decision.wanted - len(active))
            order = {State.STARTING: 0, State.IDLE: 1, State.BUSY: 2}
            active.sort(key=lambda machine: (order[machine.state], -machine.asked_at))
            for machine in active[: max(len(active) - decision.wanted, 0)]:
                self._fleet.drain(machine)

    def _observe(self) -> Observation:
        """Return what is known: jobs by the minute in which they should have finished.

        The frames of a job that waits are estimated from those before it. A job that runs has
        reported how many are left.
        """
        fleet, world, now = self._fleet, self._fleet.world, self._fleet.now
        last = fleet.last_frames
        usual = sum(last) / len(last) if last else UNKNOWN_FRAMES
        usual += world.job_overhead_s * world.frames_per_s  # a job occupies its worker for longer
        frames, jobs = defaultdict[int, float](float), Counter[int]()

        lead_s = self._rules.target_wait_s + usual / world.frames_per_s

        def add(job: Job, left: float) -> None:
            minute = math.ceil((job.arrived_at + lead_s) / 60)
            frames[minute] += left
            jobs[minute] += 1

        for job in fleet.waiting:
            add(job, usual)
        for machine in fleet.machines:
            job_here = machine.job
            if job_here is not None:
                gone = (now - job_here.started_at - world.job_overhead_s) * world.frames_per_s
                add(job_here, max(job_here.frames - max(gone, 0.0), 0.0))
        active = fleet.active()
        starting = tuple(now - m.asked_at for m in active if m.state is State.STARTING)
        draining = len(fleet.machines) - len(active)
        return Observation(
            (self._offer,),
            tuple(Work(frames[minute], minute * 60.0, jobs[minute]) for minute in frames),
            {self._offer.key: Machines(len(active) - len(starting), starting, draining)},
        )


def ours(rules: ScalingRules, max_workers: int) -> Policy:
    """Return this project's policy."""
    return lambda fleet: Ours(fleet, rules, max_workers).tick


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one policy on one day. `waste` is the share of paid time without result."""

    policy: str
    jobs: int
    usd: float
    usd_per_finished_minute: float
    wait_p50_s: float
    wait_p99_s: float
    waste: float
    interrupted_jobs: int
    most_workers: int
    cpu_s: float


def row(policy: str, figures: Figures, world: World, cpu_s: float) -> Row:
    """Return what the table shows."""
    usd = figures.paid_s / 3600 * world.usd_per_hour
    percentiles = statistics.quantiles(figures.waits_s, n=100)
    return Row(
        policy,
        len(figures.waits_s),
        round(usd, 2),
        round(usd / (figures.finished_frames / FPS / 60), 6),
        round(percentiles[49], 1),
        round(percentiles[98], 1),
        round(1 - figures.useful_s / figures.paid_s, 4),
        figures.returned_jobs,
        figures.most_machines,
        round(cpu_s, 2),
    )


def simulate(name: str, policy: Policy, jobs: list[Job], seed: int) -> Row:
    """Return the figures of a policy on a day of jobs, which stay as they are."""
    world, began = World(), time.process_time()
    fleet = Fleet(world, [replace(job) for job in jobs], seed)
    figures = fleet.run(policy(fleet), PERIOD_S)
    return row(name, figures, world, time.process_time() - began)


def main() -> None:
    """Print the table, and then one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[2_000, 20_000, 100_000])
    parser.add_argument("--per-worker", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--target-wait-s", type=float, nargs="+", default=[30.0, 120.0, 300.0])
    parser.add_argument("--max-workers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    given = parser.parse_args()
    policies = {}
    for target_s in given.target_wait_s:
        rules = ScalingRules(budget_usd_per_hour=1e6, target_wait_s=target_s)
        policies[f"target {target_s:.0f} s"] = ours(rules, given.max_workers)
    for number in given.per_worker:
        policies[f"ceil(queue / {number})"] = salad(number, given.max_workers)
    heads = "dollars  $/finished min   wait p50   wait p99  waste  interrupted  most workers"
    print(f"{'jobs':>7}  {'policy':<16}{heads}")
    rows = []
    for count in given.jobs:
        jobs = day_of_jobs(count, given.seed)
        for name, policy in policies.items():
            found = simulate(name, policy, jobs, given.seed)
            rows.append(found)
            print(
                f"{count:>7}  {name:<16}{found.usd:>7.2f}{found.usd_per_finished_minute:>16.5f}"
                f"{found.wait_p50_s:>9.0f} s{found.wait_p99_s:>9.0f} s{found.waste:>7.1%}"
                f"{found.interrupted_jobs:>13}{found.most_workers:>14}"
            )
    result = {
        "rows": [asdict(found) for found in rows],
        "world": asdict(World()),
        "seed": given.seed,
        "cpu_s": round(time.process_time(), 1),
    }
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
