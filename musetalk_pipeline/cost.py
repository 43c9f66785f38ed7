"""What the calls of stages cost, kept apart from the values that they return.

A stage returns a `Measured` value. The same call may reach whoever sums up a job's costs more than
once, because several segments draw on one block. Each call has an id, so that it counts once.
The room `receipts` adds the costs of a job up and says what they mean.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

StageName = Literal[
    "download", "validation", "load", "prepare", "encode", "listen", "generate", "compose"
]

# Answers and sidecars have one name for all that the engine does.
_PUBLISHED = {"encode": "inference", "generate": "inference"}


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one call of a stage cost.

    `seconds`: of wall time. `frames`: that it worked on; 0 if it does not work on frames.
    `faces`: that it drew, which may be fewer or more than its frames. `peak_memory_mib`: of GPU
    memory while it ran; None on a CPU. `replica`: the one that ran it; None in a single process.
    `call_id`: random, one for each call.

    `waited_s`: how long the call had waited on its replica when the work began. `pool`,
    `gpu_class`: of the engine's replica. `began`: when the work began, by the monotonic clock of
    the replica's machine, which orders the calls of one engine. `idle_s`: how long the engine had
    had nothing to do by then.
    """

    stage: StageName
    seconds: float
    frames: int
    peak_memory_mib: float | None = None
    replica: str | None = None
    pool: str | None = None
    gpu_class: str | None = None
    began: float = 0.0
    idle_s: float = 0.0
    waited_s: float = 0.0
    faces: int = 0
    call_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        return f"{self.stage}: {self.frames} frames in {self.seconds:.2f} s by {self.replica}"

    @property
    def published_stage(self) -> str:
        """The name under which answers, progress and sidecars give these seconds."""
        return _PUBLISHED.get(self.stage, self.stage)

    @property
    def is_of_engine(self) -> bool:
        """Whether an engine worked, which means a GPU where there is one."""
        return self.stage in _PUBLISHED


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    """A stage's value, and the costs of its call and of the calls that made its inputs."""

    value: T
    costs: tuple[StageCost, ...]

    @property
    def own(self) -> StageCost:
        """The cost of the call that made this value."""
        return self.costs[-1]

    def drawing(self, faces: int) -> Measured[T]:
        """Return the same of a call that drew so many faces."""
        return Measured(self.value, (*self.costs[:-1], replace(self.own, faces=faces)))

    def on(self, replica: str, peak_memory_mib: float | None = None) -> Measured[T]:
        """Return the same with the facts that only the caller of the stage has."""
        own = replace(self.own, replica=replica, peak_memory_mib=peak_memory_mib)
        return Measured(self.value, (*self.costs[:-1], own))


class EngineClock:
    """When one engine works, and how long it has nothing to do between two calls.

    All work of the engine passes through its one clock, in the engine's own thread. `pool`,
    `gpu_class`: those of the engine. `worked` is called with the seconds of each piece of work,
    failed ones included.
    """

    def __init__(
        self,
        pool: str | None = None,
        gpu_class: str | None = None,
        *,
        worked: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.gpu_class = gpu_class
        self._worked = worked
        self._clock = clock
        self._ended_at: float | None = None

    @contextmanager
    def working(self) -> Iterator[float]:
        """Give the seconds without work before this one; 0 before the first."""
        began = self._clock()
        idle_s = 0.0 if self._ended_at is None else began - self._ended_at
        try:
            yield idle_s
        finally:
            self._ended_at = self._clock()
            if self._ended_at > began:
                self._worked(self._ended_at - began)


def measure(
    stage: StageName,
    frames: int,
    call: Callable[[], T],
    inputs: Iterable[Measured[Any]] = (),
    *,
    clock: EngineClock | None = None,
    asked_at: float | None = None,
) -> Measured[T]:
    """Call a stage in this thread and measure it. `inputs`: what it works on. `clock`: of the
    engine that the call uses. `asked_at`: when the call was made, by `time.monotonic()`.
    """
    before = tuple(cost for measured in inputs for cost in measured.costs)
    with nullcontext(0.0) if clock is None else clock.working() as idle_s:
        began = time.monotonic()
        value = call()
        seconds = time.monotonic() - began
    own = StageCost(
        stage,
        seconds,
        frames,
        pool=None if clock is None else clock.pool,
        gpu_class=None if clock is None else clock.gpu_class,
        began=began,
        idle_s=idle_s,
        waited_s=0.0 if asked_at is None else began - asked_at,
    )
    return Measured(value, (*before, own))
