"""One SQLite file, written by one connection and read by another, and the threads that use it.

Reads take no lock. They see the last committed state, even while a write is in progress. A write
waits a short time for a writer in another process and then fails with `StateUnavailable`, as it
does when the disk is full. An event loop uses the file through `StateThreads`.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PROBE_BYTES = 16 * 1024  # about the size of a new job; an empty probe would fit into any full disk

_FAULTS_OF_THE_FILE = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    )
)
PROBE_SCHEMA = "CREATE TABLE IF NOT EXISTS probe (room BLOB NOT NULL)"


class StateUnavailable(Exception):
    """The state cannot be read or written now: the disk is full, or another process holds it."""


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


class StateFile:
    """The connections to one file. They may be used from any thread.

    Args:
        version: the version of the schema. A file of another version is emptied.
        schema: the statements that create the tables if they do not exist.

    Raises:
        StateUnavailable: the file cannot be opened or written.
    """

    def __init__(
        self, path: Path, version: int, schema: str, timing: StateTiming = DEFAULT_TIMING
    ) -> None:
        self.timing = timing
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with _faults_translated():
            self._writer = _connect(path, timing.busy_s)
            path.chmod(0o600)
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._make_tables(version, schema)
            self._reader = _connect(path, timing.busy_s)
            self._reader.execute("PRAGMA query_only = ON")

    def _make_tables(self, version: int, schema: str) -> None:
        db = self._writer
        if db.execute("PRAGMA user_version").fetchone()[0] != version:
            db.execute("PRAGMA foreign_keys = OFF")
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for [name] in db.execute(tables).fetchall():
                if not name.startswith("sqlite_"):
                    db.execute(f'DROP TABLE IF EXISTS "{name}"')
            db.execute("PRAGMA foreign_keys = ON")
        db.executescript(schema)
        db.execute(PROBE_SCHEMA)
        db.execute(f"PRAGMA user_version = {version}")

    def close(self) -> None:
        """Close the file. It cannot be used afterwards."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction, which is the only one that writes.

        Raises:
            StateUnavailable: nothing has been written.
        """
        with self._write_lock, _faults_translated():
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:  # some errors end it themselves
                    db.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read one consistent view of the committed state, without a lock on the file.

        Raises:
            StateUnavailable: the file cannot be read.
        """
        with self._read_lock, _faults_translated():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    def probe(self) -> None:
        """Write as much as a small job takes, and remove it.

        Raises:
            StateUnavailable: the disk is full, or the file may not be written.
        """
        with self.writing() as db:
            db.execute("INSERT INTO probe VALUES (zeroblob(?))", (PROBE_BYTES,))
            db.execute("DELETE FROM probe")


class StateThreads:
    """Uses a `StateFile` off the event loop, with one thread for writes and one for reads.

    A refused write counts as a result of `is_writable`, which then returns False without delay.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._writer = ThreadPoolExecutor(1, "state-write")
        self._reader = ThreadPoolExecutor(1, "state-read")
        self._timing = file.timing
        self._checked_at = float("-inf")
        self._is_writable = True
        self._probing: asyncio.Task[None] | None = None

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that writes.

        If this is cancelled it returns at once, but a write that has begun is completed.

        Raises:
            StateUnavailable: it was not written.
        """
        begun = self._writer.submit(function, *args, **kwargs)
        written = asyncio.wrap_future(begun)
        try:
            await asyncio.wait({written}, timeout=self._timing.queued_s)
            # Writes behind a stalled file are refused, so that their callers are answered in time.
            if not written.done() and begun.cancel():
                raise StateUnavailable("too many writes wait for the state file")
            return await written
        except StateUnavailable:
            self._set_writable(False)
            raise
        except asyncio.CancelledError:
            written.cancel()
            raise

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that only reads.

        Raises:
            StateUnavailable: the file cannot be read.
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
            await self.write(self._file.probe)
            self._set_writable(True)
        except StateUnavailable:
            pass  # `write` has stored the result
        finally:
            self._probing = None

    def _set_writable(self, is_writable: bool) -> None:
        self._is_writable, self._checked_at = is_writable, time.monotonic()


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextmanager
def _faults_translated() -> Iterator[None]:
    """Raise `StateUnavailable` for faults of the file, but not for faults of a statement."""
    try:
        yield
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _FAULTS_OF_THE_FILE:
            raise StateUnavailable(str(exc)) from exc
        raise
