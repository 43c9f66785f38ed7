"""Connections and transactions, the same for SQLite and PostgreSQL.

Every operation is one transaction, and takes the time once, from the database, so that the clocks
of the machines that run the service do not count.

SQLite has one writer at a time. Writing transactions begin with `BEGIN IMMEDIATE`, because one that
reads first and then finds that another has written would fail. In this process they wait for a
lock, which is fairer than SQLite's own waiting. PostgreSQL locks rows instead.

What has been answered survives a power cut, except for heartbeats and progress: they may be lost
with the last moments before it, and do not wait for the disk. There are ten of them for each job.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.store.errors import StoreUnavailable

WAIT_S = 5.0  # for a lock, a connection of the pool, or the server
WRITES, IS_DURABLE = "orchestrator_writes", "orchestrator_is_durable"
BEGAN_AT = "orchestrator_began_at"
NO_DATABASE = "the address must begin with sqlite:/// and name a file, or with postgresql://"


# The database's clock: seconds since 1970, UTC.
SQLITE_NOW = "SELECT (julianday('now') - 2440587.5) * 86400.0"
# Not `now()`, which is when the transaction began, perhaps before it waited for a lock.
POSTGRESQL_NOW = "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
# Each is one exchange with the server. In the second one, the end does not wait for the disk.
POSTGRESQL_BEGIN = f"BEGIN; {POSTGRESQL_NOW}"
POSTGRESQL_BEGIN_SOON = f"BEGIN; SET LOCAL synchronous_commit = off; {POSTGRESQL_NOW}"
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


@dataclass(frozen=True, slots=True)
class Transaction:
    """A connection inside a transaction. `now` is when the transaction began to work."""

    connection: sa.Connection
    now: float

    def execute(self, statement: sa.Executable, **values: object) -> sa.CursorResult[Any]:
        """Execute a statement with its named values."""
        return self.connection.execute(statement, values or None)

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT that may have an ON CONFLICT clause."""
        if self.connection.dialect.name == "sqlite":
            return sqlite.insert(table)
        return postgresql.insert(table)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a database is opened.

    Attributes:
        wait_s: For a lock, a connection of the pool, or the server.
        survives_power_cut: Whether a change is on the disk when its call returns. Otherwise only
            the death of processes loses nothing (SQLite).
        clock: Seconds since 1970, UTC; None for the database's clock. A process that embeds a
            SQLite file has the same clock, and so saves a query in each transaction.
    """

    wait_s: float = WAIT_S
    survives_power_cut: bool = True
    clock: Callable[[], float] | None = None


DEFAULT_OPENING = Opening()


class Database:
    """An engine, and transactions on it. All methods may be called from any thread."""

    def __init__(self, url: str, opening: Opening = DEFAULT_OPENING) -> None:
        self.engine = open_engine(url, opening)
        self._opening = opening
        is_sqlite = self.engine.dialect.name == "sqlite"
        self._writing = threading.Lock() if is_sqlite else None

    @contextmanager
    def write(self, *, is_durable: bool = True) -> Iterator[Transaction]:
        """Open a transaction that writes. It is committed at the end, unless that raises.

        Without `is_durable`, the end does not wait until the disk has it. A killed process loses
        nothing all the same.

        Raises:
            StoreUnavailable: the database does not answer, or cannot be written.
        """
        if self._writing is not None and not self._writing.acquire(timeout=self._opening.wait_s):
            raise StoreUnavailable("other writes have held the database for too long")
        try:
            with self._begin(writes=True, is_durable=is_durable) as transaction:
                yield transaction
        finally:
            if self._writing is not None:
                self._writing.release()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a transaction that only reads, and waits for no writer.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        with self._begin(writes=False) as transaction:
            yield transaction

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _begin(self, *, writes: bool, is_durable: bool = True) -> Iterator[Transaction]:
        options = {WRITES: writes, IS_DURABLE: is_durable}
        try:
            with ExitStack() as stack:
                yield self._first_answer(stack, options)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            if _is_fault_of_statement(error):
                raise
            raise StoreUnavailable(_reason(error)) from error

    def _first_answer(self, stack: ExitStack, options: dict[str, bool]) -> Transaction:
        """Begin, and take the time. A connection that has died with its server is replaced.

        Trying each connection before its use would cost one more exchange with the server.
        """
        for is_last in (False, True):
            connection = self.engine.connect().execution_options(**options)
            try:
                begun = connection.begin()
                now = self._now(connection)
            except BaseException as error:
                connection.close()
                was_dead = isinstance(error, exc.DBAPIError) and error.connection_invalidated
                if is_last or not was_dead:
                    raise
            else:
                stack.callback(connection.close)
                stack.enter_context(begun)
                return Transaction(connection, now)
        raise AssertionError("unreachable")

    def _now(self, connection: sa.Connection) -> float:
        if self._opening.clock is not None:
            return self._opening.clock()
        began_at: float = connection.info[BEGAN_AT]
        return began_at


def open_engine(url: str, opening: Opening = DEFAULT_OPENING) -> sa.Engine:
    """Return an engine for a SQLite file or a PostgreSQL server.

    Raises:
        ValueError: the address is of neither. The message does not repeat it, as it may contain a
            password.
    """
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise ValueError(NO_DATABASE) from error
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return _postgresql_engine(parsed.set(drivername="postgresql+psycopg"))
    if backend == "sqlite" and parsed.database and ":memory:" not in parsed.database:
        return _sqlite_engine(parsed, opening)
    raise ValueError(NO_DATABASE)


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    timeouts = "-c statement_timeout=10000 -c lock_timeout=5000"
    engine = sa.create_engine(
        url,
        pool_size=8,  # more than the threads of a service
        max_overflow=0,
        pool_timeout=WAIT_S,
        connect_args={
            "connect_timeout": int(WAIT_S),
            "options": f"{timeouts} -c idle_in_transaction_session_timeout=30000",
        },
    )

    def set_up(connection: Any, _record: object) -> None:
        # Otherwise the driver begins a transaction in an exchange of its own.
        connection.autocommit = True

    def execute(cursor: Any, statement: str, _context: object) -> bool:
        cursor.execute(statement, prepare=False)  # several statements cannot be prepared
        while cursor.nextset():
            pass
        return True

    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        waits = options.get(IS_DURABLE, True) or not options.get(WRITES, True)
        statement = POSTGRESQL_BEGIN if waits else POSTGRESQL_BEGIN_SOON
        begun = connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        connection.info[BEGAN_AT] = begun.scalar_one()

    sa.event.listen(engine, "connect", set_up)
    sa.event.listen(engine, "do_execute_no_params", execute)
    sa.event.listen(engine, "begin", begin)
    return engine


def _sqlite_engine(url: sa.URL, opening: Opening) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=opening.wait_s,
        connect_args={"timeout": opening.wait_s, "check_same_thread": False},
    )

    def set_up(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        writes = options.get(WRITES, True)
        if writes and opening.survives_power_cut:
            # FULL: an accepted result survives a power cut too.
            level = "FULL" if options.get(IS_DURABLE, True) else "NORMAL"
            connection.exec_driver_sql(f"PRAGMA synchronous = {level}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        if opening.clock is None:
            connection.info[BEGAN_AT] = connection.exec_driver_sql(SQLITE_NOW).scalar_one()

    sa.event.listen(engine, "connect", set_up)
    sa.event.listen(engine, "begin", begin)
    return engine


def _is_fault_of_statement(error: Exception) -> bool:
    """Return whether the statement is wrong, not the database. That is a fault of the program."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF not in _FAULTS_OF_THE_FILE
    # A serialization failure or a deadlock of PostgreSQL is one of these too.
    return not isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)


def _reason(error: Exception) -> str:
    """Return what the driver said, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
