"""Databases for the tests: a SQLite file, and a PostgreSQL server of their own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from orchestrator.routing import OverflowRule, RoutingRules
from orchestrator.store import migrate
from orchestrator.store.database import DEFAULT_OPENING, Database, Opening
from orchestrator.store.store import JobStore
from orchestrator.store.tables import metadata
from orchestrator.store.values import NewJob, Rules, WorkerFacts

INSTANTS = ("_at", "_until", "deadline")
START_S = 60.0
_numbers = itertools.count(1)
# Every tier is open at once, so that a job's age and the other workers do not matter.
OPEN = RoutingRules(overflow=(OverflowRule(0.0, 0),) * 3)
RULES = Rules(lease_s=30.0, listing_grace_s=15.0, max_failures=3, max_interruptions=5, routing=OPEN)


class Databases(Protocol):
    """Makes databases of one kind, with the newest tables."""

    def new(self, folder: Path) -> str:
        """Return the address of a new one, in `folder` if it is a file."""


class SqliteFiles:
    """Copies of one migrated file, because migrating takes longer than most tests."""

    def __init__(self, template: Path) -> None:
        self._template = template
        migrate_new(f"sqlite:///{template}")

    def new(self, folder: Path) -> str:
        """See `Databases`."""
        file = folder / f"{next(_numbers)}.db"
        shutil.copy(self._template, file)
        return f"sqlite:///{file}"


class PostgresServer:
    """A server that listens on a socket in `folder` only. Its databases are copies of one."""

    def __init__(self, folder: Path, user: str, command: list[Any], run: dict[str, Any]) -> None:
        self._folder, self._user = folder, user
        self._command, self._run = command, run
        self.start()
        self.create("template")
        migrate_new(self.url("template"))

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self._folder, **self._run
            )
        _wait_for(self._folder, self._server)

    def stop(self, how: int = signal.SIGINT) -> None:
        """End it and its connections: orderly, or at once as after a crash with SIGQUIT."""
        self._server.send_signal(how)
        self._server.wait(START_S)

    def restart(self, how: int = signal.SIGINT) -> None:
        """Stop and start it."""
        self.stop(how)
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{self._user}@/{database}?host={self._folder}"

    def new(self, folder: Path) -> str:
        """See `Databases`."""
        name = f"test_{next(_numbers)}"
        self.create(f"{name} TEMPLATE template")
        return self.url(name)

    def create(self, database: str) -> None:
        engine = sa.create_engine(
            self.url("postgres").replace("postgresql:", "postgresql+psycopg:"),
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {database}")
        engine.dispose()


def migrate_new(url: str) -> None:
    """Make the tables of an empty database, and close it."""
    database = Database(url)
    migrate.upgrade(database.engine)
    database.close()


def why_no_postgres() -> str | None:
    """Return why no PostgreSQL server can be started here; None if one can."""
    if _program("initdb") is None or _program("postgres") is None:
        return "PostgreSQL (initdb, postgres) is not installed"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return None


@contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Start a server as an unprivileged user, and end it."""
    user = "nobody" if os.getuid() == 0 else None
    run: dict[str, Any] = {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
    # Not in the folder of the tests, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    try:
        if user:
            shutil.chown(folder, user, "nogroup")
        data, name = folder / "data", "orchestrator"
        initdb = [_program("initdb"), "-D", data, "-U", name, "--no-sync", "-A", "trust", "-E"]
        subprocess.run(
            [*initdb, "UTF8"], check=True, capture_output=True, timeout=START_S, cwd=folder, **run
        )
        sync = f"fsync={'on' if fsync else 'off'}"
        settings = (sync, "listen_addresses=", f"unix_socket_directories={folder}")
        options = [part for setting in settings for part in ("-c", setting)]
        server = PostgresServer(folder, name, [_program("postgres"), "-D", data, *options], run)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _wait_for(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        ready = subprocess.run(
            ["pg_isready", "-q", "-h", folder], timeout=START_S, capture_output=True
        )
        if ready.returncode == 0:
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise AssertionError((folder / "log").read_text())
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.05)


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@dataclass(frozen=True, slots=True)
class Bench:
    """A store, and its database for what only a test may do."""

    store: JobStore
    database: Database

    def age(self, seconds: float) -> None:
        """Let so much time pass: everything that is stored happened that much earlier."""
        with self.database.write() as tx:
            for table in metadata.tables.values():
                named = [column for column in table.columns if column.name.endswith(INSTANTS)]
                earlier = {column.name: column - seconds for column in named}
                if earlier:
                    tx.execute(table.update().values(earlier))


def open_bench(url: str, rules: Rules, opening: Opening = DEFAULT_OPENING) -> Bench:
    """Open a database that has the newest tables."""
    database = Database(url, opening)
    return Bench(JobStore(database, rules), database)


def new_job(job_id: str, **changes: Any) -> NewJob:
    """A job that a client might submit."""
    values: dict[str, Any] = {
        "client": "admin",
        "video_url": "https://media.example/v.mp4?signature=one",
        "audio_url": "https://media.example/a.wav?signature=one",
    }
    return NewJob(job_id, **(values | changes))


def worker(name: str, worker_type: str = "main") -> WorkerFacts:
    """A worker that might claim."""
    return WorkerFacts(name, worker_type, "salad", "RTX-3090-24GB")
