"""One SQLite file, written by one connection and read by another, and the threads to use it from.

Reads take no lock: they see the last committed state, whatever a writer is doing. A write waits a
short time for a writer in another process and then fails with `StateUnavailable`, as it does when
the disk is full. Nothing of this may run on an event loop: `StateThreads` is the way there.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

BUSY_S = 2.0  # how long a write waits for another process's
QUEUED_S = 4.0  # a write that waited that long for earlier ones here is not begun any more
# How long a finding of `is_writable` is good for. A refused write is found at once in any case, so
# what is good is looked at seldom: a look is a write.
GOOD_S, BAD_S = 10.0, 2.0
PROBE_WAIT_S = 0.5  # a probe that takes longer is waited for by the next question
PROBE_BYTES = 16 * 1024  # about what entering a job takes; 0 would fit into any full disk

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


class StateFile:
    """The connections to one file; callers on any thread.

    Args:
        version: of the schema; a file of another version is emptied.
        schema: the statements that create the tables, if they do not exist.

    Raises:
        StateUnavailable: the file cannot be opened or written.
    """

    def __init__(self, path: Path, version: int, schema: str) -> None:
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with _said():
            self._writer = _connect(path)
            path.chmod(0o600)
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._make_tables(version, schema)
            self._reader = _connect(path)
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
        """One transaction; the only one that writes.

        Raises:
            StateUnavailable: nothing has been written.
        """
        with self._write_lock, _said():
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:  # some errors have ended it already
                    db.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of what has been committed. Takes no lock of the file.

        Raises:
            StateUnavailable: the file cannot be read.
        """
        with self._read_lock, _said():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    def probe(self) -> None:
        """Write what a small job takes, and remove it.

        Raises:
            StateUnavailable: there is no room, or no right, to write.
        """
        with self.writing() as db:
            db.execute("INSERT INTO probe VALUES (zeroblob(?))", (PROBE_BYTES,))
            db.execute("DELETE FROM probe")


class StateThreads:
    """Runs work on a `StateFile` off the event loop: writes one after another, reads beside them.

    A write that the file refused is remembered, so that `is_writable` says so without delay.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._writer = ThreadPoolExecutor(1, "state-write")
        self._reader = ThreadPoolExecutor(1, "state-read")
        self._found_at = float("-inf")
        self._is_writable = True
        self._probing: asyncio.Task[None] | None = None

    async def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something that writes.

        Cancelled, this returns at once, but what has begun is written all the same.

        Raises:
            StateUnavailable: it was not written.
        """
        begun = self._writer.submit(work, *args, **kwargs)
        written = asyncio.wrap_future(begun)
        try:
            await asyncio.wait({written}, timeout=QUEUED_S)
            # Behind a stalled file everything waits: answers are due, even if they are refusals.
            if not written.done() and begun.cancel():
                raise StateUnavailable("too many writes wait for the state file")
            return await written
        except StateUnavailable:
            self._note(is_writable=False)
            raise
        except asyncio.CancelledError:
            written.cancel()
            raise

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something that only reads.

        Raises:
            StateUnavailable: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, lambda: work(*args, **kwargs))

    async def is_writable(self) -> bool:
        """Return whether a job could be entered, as last found; answers soon in any case."""
        fresh_s = GOOD_S if self._is_writable else BAD_S
        if time.monotonic() - self._found_at > fresh_s:
            if self._probing is None:
                self._probing = asyncio.create_task(self._probe())
            await asyncio.wait({self._probing}, timeout=PROBE_WAIT_S)
        return self._is_writable

    async def _probe(self) -> None:
        try:
            await self.write(self._file.probe)
            self._note(is_writable=True)
        except StateUnavailable:
            pass  # noted by `write`
        finally:
            self._probing = None

    def _note(self, *, is_writable: bool) -> None:
        self._is_writable, self._found_at = is_writable, time.monotonic()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextmanager
def _said() -> Iterator[None]:
    """Turn what the file, not the statement, is to blame for into `StateUnavailable`."""
    try:
        yield
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _FAULTS_OF_THE_FILE:
            raise StateUnavailable(str(exc)) from exc
        raise
