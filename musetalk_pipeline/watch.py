"""What can end a job early, and the check that long loops call for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from musetalk_pipeline.errors import DeadlineExceeded, JobCancelled

# Called between frames or batches; raises once the result is no longer needed.
Check: TypeAlias = Callable[[], None]


def go_on() -> None:
    """Never end anything: the check for callers that cannot be cancelled."""


class Cancellation(Protocol):
    """A `threading.Event`, or an object with the same method."""

    def is_set(self) -> bool:
        """Return whether the result is no longer needed."""
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """What can end a job early; checked before every frame and every batch."""

    cancelled: Cancellation = field(default_factory=threading.Event)
    deadline_s: float | None = None  # from now on
    started: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise if the job must end.

        Raises:
            JobCancelled, DeadlineExceeded: stop; nothing has been written to the output path.
        """
        if self.cancelled.is_set():
            raise JobCancelled("The job was cancelled.")
        if self.deadline_s is not None and time.monotonic() - self.started > self.deadline_s:
            raise DeadlineExceeded(
                f"The job was not finished within its deadline of {self.deadline_s:.0f} s."
            )
