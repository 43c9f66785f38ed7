"""A day of arrivals and interrupted machines, simulated event by event. Nothing sleeps.

`Day` has the jobs, `Fleet` runs them on machines that start slowly and are taken away at times, and
`Figures` is what it costs. Policies (scaling_policy.py) only change the number of machines.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

DAY_S = 86_400.0
FPS = 25.0


@dataclass(frozen=True, slots=True)
class World:
    """The machines. The first two figures are Salad's, measured; the others are assumptions."""

    interruptions_per_s: float = 182 / (100 * 7 * DAY_S)  # 182 a week in 100 machines
    half_up_s: float = 600.0  # half of the machines are up after 10 minutes
    frames_per_s: float = 25.0
    job_overhead_s: float = 10.0  # download and upload
    usd_per_hour: float = 0.09  # RTX 3090, priority batch, seen in 2026-03


@dataclass(slots=True, eq=False)
class Job:
    """One job of the day; `started_at` is its last start."""

    arrived_at: float
    frames: float
    started_at: float = math.nan


class State(Enum):
    """Of a machine."""

    STARTING = auto()
    IDLE = auto()
    BUSY = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class Machine:
    """One machine. `epoch` counts its starts and its end; events of an earlier epoch are void."""

    asked_at: float
    state: State = State.STARTING
    up_at: float = math.nan
    job: Job | None = None
    is_draining: bool = False
    epoch: int = 0


def day_of_jobs(count: int, seed: int) -> list[Job]:
    """Return the jobs of a day: low at night, highest in the afternoon, and three batches of 3 %.

    Videos last 60 s in the median and 83 s on average (log-normal).
    """
    chance = random.Random(seed)
    minutes = [0.1 + max(math.sin((minute / 1440 - 0.3) * math.tau), 0) for minute in range(1440)]
    ends = list(itertools.accumulate(minutes))
    batches = [(hour * 3600.0, count * 3 // 100) for hour in (3, 10, 16)]
    times = [start + chance.uniform(0, 60) for start, size in batches for _ in range(size)]
    while len(times) < count:
        minute = bisect_left(ends, chance.uniform(0, ends[-1]))
        times.append((minute + chance.random()) * 60)
    return [Job(at, 60 * FPS * chance.lognormvariate(0, 0.8)) for at in sorted(times)]


@dataclass(slots=True)
class Figures:
    """What a policy led to. Seconds are machine seconds that are paid for."""

    waits_s: list[float] = field(default_factory=list)
    useful_s: float = 0.0
    lost_s: float = 0.0
    paid_s: float = 0.0
    finished_frames: float = 0.0
    returned_jobs: int = 0
    most_machines: int = 0
    asked_machines: int = 0


class Fleet:
    """Machines and the queue that they take jobs from, first come, first served.

    A machine costs from when it is up until it is gone, as at Salad. One that is interrupted is
    replaced by its provider and starts again, and its job returns to the head of the queue.
    """

    def __init__(self, world: World, jobs: list[Job], seed: int) -> None:
        self.world, self.jobs, self.now = world, jobs, 0.0
        self.waiting: deque[Job] = deque()
        self.machines: dict[Machine, None] = {}  # those that are not gone, in the order of asking
        self.figures = Figures()
        self.last_frames: deque[float] = deque(maxlen=50)  # of the jobs that finished last
        self._idle: list[Machine] = []
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self, tick: Callable[[], None], period_s: float) -> Figures:
        """Run until all jobs are done, and call `tick` every `period_s`."""
        arrivals = iter(self.jobs)

        def arrive(job: Job) -> None:
            self.waiting.append(job)
            self._dispatch()
            follow()

        def follow() -> None:
            job = next(arrivals, None)
            if job is not None:
                self._at(job.arrived_at, lambda: arrive(job))

        def again() -> None:
            tick()
            self.figures.most_machines = max(self.figures.most_machines, len(self.machines))
            self._at(self.now + period_s, again)

        follow()
        self._at(0.0, again)
        while len(self.figures.waits_s) < len(self.jobs) or self.machines:
            self.now, _, happen = heapq.heappop(self._events)
            if self.now > 3 * DAY_S:
                raise RuntimeError("the day does not end")
            happen()
        return self.figures

    def active(self) -> list[Machine]:
        """Return the machines that are not draining."""
        return [machine for machine in self.machines if not machine.is_draining]

    def ask_for(self, count: int) -> None:
        """Ask for more machines."""
        for _ in range(count):
            machine = Machine(self.now)
            self.machines[machine] = None
            self.figures.asked_machines += 1
            self._start(machine)

    def drain(self, machine: Machine) -> None:
        """Give a machine back once its job is finished."""
        machine.is_draining = True
        if machine.state is not State.BUSY:
            self._end(machine)

    def take_away(self, machine: Machine) -> None:
        """Give a machine back at once. Its job returns to the queue."""
        self._interrupt_job(machine)
        self._end(machine)
        self._dispatch()

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _start(self, machine: Machine) -> None:
        machine.state, machine.epoch = State.STARTING, machine.epoch + 1
        takes_s = self._chance.expovariate(math.log(2) / self.world.half_up_s)
        self._later(machine, takes_s, self._come_up)

    def _later(self, machine: Machine, delay_s: float, happen: Callable[[Machine], None]) -> None:
        epoch = machine.epoch
        self._at(self.now + delay_s, lambda: happen(machine) if machine.epoch == epoch else None)

    def _come_up(self, machine: Machine) -> None:
        machine.state, machine.up_at = State.IDLE, self.now
        lasts_s = self._chance.expovariate(self.world.interruptions_per_s)
        self._later(machine, lasts_s, self._lose)
        self._idle.append(machine)
        self._dispatch()

    def _lose(self, machine: Machine) -> None:
        self._interrupt_job(machine)
        if machine.is_draining:
            self._end(machine)
        else:
            self.figures.paid_s += self.now - machine.up_at
            self._start(machine)
        self._dispatch()

    def _interrupt_job(self, machine: Machine) -> None:
        if machine.job is not None:
            self.figures.lost_s += self.now - machine.job.started_at
            self.figures.returned_jobs += 1
            self.waiting.appendleft(machine.job)
            machine.job = None

    def _end(self, machine: Machine) -> None:
        if machine.state is not State.STARTING:
            self.figures.paid_s += self.now - machine.up_at
        machine.state, machine.epoch = State.GONE, machine.epoch + 1
        del self.machines[machine]

    def _dispatch(self) -> None:
        while self.waiting and self._idle:
            machine = self._idle.pop()
            if machine.state is State.IDLE:
                self._begin(machine, self.waiting.popleft())

    def _begin(self, machine: Machine, job: Job) -> None:
        machine.state, machine.job = State.BUSY, job
        job.started_at = self.now
        takes_s = job.frames / self.world.frames_per_s + self.world.job_overhead_s
        self._later(machine, takes_s, self._finish)

    def _finish(self, machine: Machine) -> None:
        job, machine.job = machine.job, None
        assert job is not None
        self.figures.waits_s.append(job.started_at - job.arrived_at)
        self.figures.useful_s += self.now - job.started_at
        self.figures.finished_frames += job.frames
        self.last_frames.append(job.frames)
        machine.state = State.IDLE
        if machine.is_draining:
            self._end(machine)
            return
        self._idle.append(machine)
        self._dispatch()
