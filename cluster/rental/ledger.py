"""What this program has rented, in a SQLite file that outlives it.

A rent is written before its create call is sent, so that a kill at any instant leaves a row that
leads to the machine. The life of a row: `asked`, then `rented` once the vendor has named the
machine, `ending` before it is destroyed, and `gone`. Several processes may use one file. Each call
opens the file and closes it again, so threads may share a ledger.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.rental.errors import OverBudget
from cluster.rental.identity import Identity, read_name
from cluster.rental.values import Vendor

HOUR_S = 3600.0
KEPT_S = 30 * 24 * HOUR_S  # how long rows of machines that are gone are kept
BUSY_S = 20.0

_TABLE = """
CREATE TABLE IF NOT EXISTS rents (
    name TEXT PRIMARY KEY,
    vendor TEXT NOT NULL,
    offer_id TEXT NOT NULL,
    gpu_name TEXT NOT NULL,
    usd_per_hour REAL NOT NULL,
    state TEXT NOT NULL,
    asked_at REAL NOT NULL,
    owner TEXT NOT NULL,
    instance_id TEXT,
    ended_at REAL,
    facts TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX IF NOT EXISTS rents_by_instance ON rents (vendor, instance_id);
"""
_COLUMNS = (
    "name, vendor, offer_id, gpu_name, usd_per_hour, state, asked_at, owner, instance_id, facts"
)


class RentState(StrEnum):
    """Where a rent is in its life."""

    ASKED = "asked"
    RENTED = "rented"
    ENDING = "ending"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Rent:
    """One row: a machine that was asked for. `asked_at` is in seconds since 1970.

    `owner` names the process that asked (`process_owner`). `facts` are what callers keep with it.
    """

    name: str
    vendor: Vendor
    offer_id: str
    gpu_name: str
    usd_per_hour: float
    state: RentState
    asked_at: float
    owner: str
    instance_id: str | None
    facts: Mapping[str, str]

    @property
    def identity(self) -> Identity | None:
        """Return what the name says."""
        return read_name(self.name)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all machines of a ledger together may cost, and how many may be rented in an hour."""

    usd_per_hour: float
    rents_per_hour: int


class Ledger:
    """The rents of one file. `clock` returns seconds since 1970."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        with self._transaction() as db:
            for statement in _TABLE.split(";"):
                db.execute(statement)

    def ask(self, name: str, vendor: Vendor, offer: tuple[str, str, float], budget: Budget) -> None:
        """Write down that a machine is about to be rented. `offer`: id, GPU, dollars per hour.

        Raises:
            OverBudget: nothing was written, and nothing may be rented.
        """
        now = self._clock()
        offer_id, gpu_name, usd_per_hour = offer
        with self._transaction() as db:
            _check_budget(db, usd_per_hour, budget, now)
            db.execute("DELETE FROM rents WHERE state = 'gone' AND ended_at < ?", (now - KEPT_S,))
            db.execute(
                "INSERT INTO rents (name, vendor, offer_id, gpu_name, usd_per_hour, state, "
                "asked_at, owner) VALUES (?, ?, ?, ?, ?, 'asked', ?, ?)",
                (name, vendor, offer_id, gpu_name, usd_per_hour, now, process_owner(os.getpid())),
            )

    def rented(self, name: str, instance_id: str) -> None:
        """Write down which machine a rent became."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rents SET state = 'rented', instance_id = ? "
                "WHERE name = ? AND state = 'asked'",
                (instance_id, name),
            )

    def ending(self, name: str) -> None:
        """Write down that a machine is about to be destroyed."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rents SET state = 'ending' WHERE name = ? AND state != 'gone'", (name,)
            )

    def gone(self, name: str) -> None:
        """Write down that a machine does not exist, or not any more."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rents SET state = 'gone', ended_at = ? WHERE name = ? AND state != 'gone'",
                (self._clock(), name),
            )

    def live(self, vendor: Vendor | None = None) -> tuple[Rent, ...]:
        """Return the rents that are not gone, the oldest first."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM rents WHERE state != 'gone' AND (? IS NULL OR vendor = ?) "
                "ORDER BY asked_at, name",
                (vendor, vendor),
            ).fetchall()
        return tuple(_rent(row) for row in rows)

    def facts(self, name: str) -> Mapping[str, str]:
        """Return what callers keep with a machine; nothing for an unknown name."""
        with self._transaction() as db:
            row = db.execute("SELECT facts FROM rents WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else {}

    def add_facts(self, name: str, facts: Mapping[str, str]) -> None:
        """Keep facts with a machine, in addition to those that are there."""
        with self._transaction() as db:
            row = db.execute("SELECT facts FROM rents WHERE name = ?", (name,)).fetchone()
            if row is not None:
                merged = json.dumps(json.loads(row[0]) | dict(facts))
                db.execute("UPDATE rents SET facts = ? WHERE name = ?", (merged, name))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of the file, so that what is read stays true until the end."""
        db = sqlite3.connect(self._file, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # which rolls back what was not committed


def _check_budget(db: sqlite3.Connection, usd_per_hour: float, budget: Budget, now: float) -> None:
    (spent,) = db.execute(
        "SELECT COALESCE(SUM(usd_per_hour), 0) FROM rents WHERE state != 'gone'"
    ).fetchone()
    if spent + usd_per_hour > budget.usd_per_hour + 1e-9:
        raise OverBudget(
            f"${usd_per_hour:.3f} per hour more than ${spent:.3f} would exceed the budget of "
            f"${budget.usd_per_hour:.2f} per hour."
        )
    (rents,) = db.execute(
        "SELECT COUNT(*) FROM rents WHERE asked_at > ?", (now - HOUR_S,)
    ).fetchone()
    if rents >= budget.rents_per_hour:
        raise OverBudget(
            f"{rents} machines were asked for within the last hour, and no more than "
            f"{budget.rents_per_hour} may be."
        )


def _rent(row: tuple[str, str, str, str, float, str, float, str, str | None, str]) -> Rent:
    name, vendor, offer_id, gpu_name, usd, state, asked_at, owner, instance_id, facts = row
    return Rent(
        name, Vendor(vendor), offer_id, gpu_name, usd, RentState(state), asked_at, owner,
        instance_id, json.loads(facts),
    )  # fmt: skip


def process_owner(pid: int) -> str:
    """Return a text that names a process of this machine for as long as it runs."""
    return f"{pid}:{_started(pid)}"


def is_running(owner: str) -> bool:
    """Return whether the process that an owner names still runs on this machine."""
    pid, _, started = owner.partition(":")
    return started != "" and _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return when a process started, in ticks of its machine; empty if there is none.

    A process id alone may be that of a later process.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""
