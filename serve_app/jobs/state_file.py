"""The store in a file of the state folder, and the threads that use it.

Reads take no lock. They see the last committed state, even while a write is in progress. A write
waits a short time for a writer in another process and then fails with `StoreUnavailable`, as it
does when the disk is full. An event loop uses the file through `StateThreads`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from orchestrator.store import migrate
from orchestrator.store.database import Database, Opening
from orchestrator.store.errors import StoreUnavailable
from orchestrator.store.tables import probe

P = ParamSpec("P")
T = TypeVar("T")

PROBE_BYTES = 16 * 1024  # about the size of a new job; an empty probe would fit into any full disk


@dataclass(frozen=True, slots=True)
class StateTiming:
    """Waits in seconds.

    A write waits `busy_s` for a writer in another process, and is given up if it has not begun
    `queued_s` after it was submitted. A result of `is_writable` is reused for `writable_s` or
    `unwritable_s`. A good result is reused longer, because a probe is a write and a refused write
    is noticed at once anyway. A caller waits `probe_wait_s` for a probe.
    """

    busy_s: float = 2.0
    queued_s: float = 4.0
    writable_s: float = 10.0
    unwritable_s: float = 2.0
    probe_wait_s: float = 0.5


DEFAULT_TIMING = StateTiming()


def open_file(
    path: Path, clock: Callable[[], float] = time.time, timing: StateTiming = DEFAULT_TIMING
) -> Database:
    """Open the store in a file that only its owner can read, with the newest tables.

    Raises:
        StoreUnavailable: the file cannot be opened or written.
        SchemaTooNew: it was written by a newer release.
    """
    try:
        path.touch(mode=0o600)  # addresses may be signed
        path.chmod(0o600)
    except OSError as exc:
        raise StoreUnavailable(f"The state file cannot be made: {exc.strerror}") from exc
    # Only a power cut can lose the last moments, and after one, no attempt runs any more.
    opening = Opening(timing.busy_s, survives_power_cut=False, clock=clock)
    database = Database(f"sqlite:///{path}", opening)
    migrate.upgrade(database.engine)
    return database


def write_probe(database: Database) -> None:
    """Write as much as a small job takes, and remove it.

    Raises:
        StoreUnavailable: the disk is full, or the file may not be written.
    """
    with database.write() as tx:
        tx.execute(probe.insert(), room=bytes(PROBE_BYTES))
        tx.execute(probe.delete())


class StateThreads:
    """Uses a file off the event loop, with one thread for writes and one for reads.

    A refused write counts as a result of `is_writable`, which then returns False without delay.
    """

    def __init__(self, file: Database, timing: StateTiming = DEFAULT_TIMING) -> None:
        self._file = file
        self._writer = ThreadPoolExecutor(1, "state-write")
        self._reader = ThreadPoolExecutor(1, "state-read")
        self._timing = timing
        self._checked_at = float("-inf")
        self._is_writable = True
        self._probing: asyncio.Task[None] | None = None

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that writes.

        If this is cancelled it returns at once, but a write that has begun is completed.

        Raises:
            StoreUnavailable: it was not written.
        """
        begun = self._writer.submit(function, *args, **kwargs)
        written = asyncio.wrap_future(begun)
        try:
            await asyncio.wait({written}, timeout=self._timing.queued_s)
            # Writes behind a stalled file are refused, so that their callers are answered in time.
            if not written.done() and begun.cancel():
                raise StoreUnavailable("too many writes wait for the state file")
            return await written
        except StoreUnavailable:
            self._set_writable(False)
            raise
        except asyncio.CancelledError:
            written.cancel()
            raise

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that only reads.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, lambda: function(*args, **kwargs))

    async def is_writable(self) -> bool:
        """Return whether a job could be stored, by the newest result. Returns soon in any case."""
        timing = self._timing
        fresh_s = timing.writable_s if self._is_writable else timing.unwritable_s
        if time.monotonic() - self._checked_at > fresh_s:
            if self._probing is None:
                self._probing = asyncio.create_task(self._probe())
            await asyncio.wait({self._probing}, timeout=timing.probe_wait_s)
        return self._is_writable

    async def _probe(self) -> None:
        try:
            await self.write(write_probe, self._file)
            self._set_writable(True)
        except StoreUnavailable:
            pass  # `write` has stored the result
        finally:
            self._probing = None

    def _set_writable(self, is_writable: bool) -> None:
        self._is_writable, self._checked_at = is_writable, time.monotonic()
