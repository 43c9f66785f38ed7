"""How far a long piece of work is, on standard error: a bar with the time that is left.

Without a terminal nothing is redrawn. A line is written now and then, and of frames also when the
step changes.
"""

from __future__ import annotations

import sys
import time
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Unit = Literal["frames", "bytes"]
LINE_S = 10.0  # between two lines about the same step


class ProgressBar:
    """One bar for one piece of work after the other; used as a context manager.

    `is_drawn`: there is a terminal, and a bar on it.
    """

    def __init__(self, unit: Unit) -> None:
        console = Console(stderr=True)
        self._unit = unit
        self.is_drawn = console.is_terminal
        self._bar = Progress(
            *_columns(unit), console=console, transient=True, disable=not self.is_drawn
        )
        self._task = self._bar.add_task("", total=None, start=False)
        self._step = ""
        self._began = self._written = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: str, done: int = 0, total: int | None = None) -> None:
        """Say how far `step` is: `done` of `total` frames or bytes; None if it is unknown."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._began = step, now
            self._bar.reset(self._task, description=step, total=total)
            self._written = now - LINE_S if self._unit == "frames" else now
        self._bar.update(self._task, completed=done, total=total)
        if not self.is_drawn and now - self._written >= LINE_S:
            self._written = now
            print(self._line(done, total, now - self._began), file=sys.stderr, flush=True)

    def _line(self, done: int, total: int | None, elapsed_s: float) -> str:
        if not done:
            return f"{self._step}: {self._amount(total)}" if total else self._step
        if not total:
            return f"{self._step}: {self._amount(done)}"
        shown = str(done) if self._unit == "frames" else decimal(done)
        line = f"{self._step}: {shown} of {self._amount(total)}, {100 * done // total} %"
        left_s = elapsed_s * (total - done) / done
        return f"{line}, about {left_s:.0f} s left" if left_s >= 1 else line

    def _amount(self, count: int) -> str:
        return f"{count} frames" if self._unit == "frames" else decimal(count)


def _columns(unit: Unit) -> list[ProgressColumn]:
    amount: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("frames")]
    if unit == "bytes":
        amount = [DownloadColumn(), TransferSpeedColumn()]
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *amount,
        TimeElapsedColumn(),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(),
    ]
