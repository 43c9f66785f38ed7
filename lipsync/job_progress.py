"""A remote job while it runs, on standard error: a bar, or lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from lipsync.terminal import Terminal
from musetalk_pipeline.progress_bar import ProgressBar

if TYPE_CHECKING:
    from lipsync_client import Job, LipsyncClient, Transfer

LINE_STEP = 0.1  # of the fraction, between two lines about the same phase


class JobProgress:
    """Shows the states of one job; used as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._is_drawn = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._is_drawn,
        )
        self._task = self._bar.add_task("", total=1.0, detail="")
        self._phase, self._fraction = "", -1.0

    def __enter__(self) -> JobProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, job: Job) -> None:
        """Show a state, if it is one that has not been shown."""
        progress = job.progress
        if progress is None or job.has_ended:
            return
        detail = _detail(job)
        self._bar.update(
            self._task, description=progress.phase, completed=progress.fraction, detail=detail
        )
        is_step = progress.fraction >= self._fraction + LINE_STEP
        if not self._is_drawn and (progress.phase != self._phase or is_step):
            self._phase, self._fraction = progress.phase, progress.fraction
            text = f"{progress.phase}: {progress.fraction:.0%}"
            print(", ".join(filter(None, (text, detail))), file=sys.stderr, flush=True)


def _detail(job: Job) -> str:
    progress = job.progress
    assert progress is not None, "the caller has looked"
    parts = []
    if progress.queue_position is not None:
        parts.append(f"place {progress.queue_position} in the queue")
    if progress.frames_total:
        parts.append(f"{progress.frames_done} of {progress.frames_total} frames")
    if progress.eta_s is not None:
        parts.append(f"about {progress.eta_s:.0f} s left")
    return ", ".join(parts)


def follow(terminal: Terminal, client: LipsyncClient, job_id: str) -> Job:
    """Show a job until it ends, and return its end. Ctrl-C says how to come back."""
    terminal.stopping.last_words = (
        f"the job goes on: `lipsync watch {job_id}` shows it, `lipsync cancel {job_id}` ends it"
    )
    with JobProgress() as shown:
        last: Job | None = None
        for last in client.events(job_id):
            shown.show(last)
    assert last is not None, "the events of a job end with its end"
    return last


class Transfers:
    """Shows uploads and downloads; used as a context manager."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._bar = ProgressBar("bytes")

    def __enter__(self) -> Transfers:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def show(self, transfer: Transfer) -> None:
        """Show how far the current file is."""
        self._bar.show(self._step, transfer.done, transfer.total)


def table_of(jobs: Iterable[Job]) -> list[tuple[str, ...]]:
    """Return the rows of a list of jobs."""
    rows: list[tuple[str, ...]] = []
    for job in jobs:
        progress: Any = job.progress
        shown = ""
        if progress is not None and job.status == "running":
            shown = f"{progress.phase} {progress.fraction:.0%}"
        elif progress is not None and progress.queue_position is not None:
            shown = f"place {progress.queue_position}"
        created = (job.created_at or "")[:19].replace("T", " ")
        rows.append((job.id, job.status, shown, created, job.error or ""))
    return rows
