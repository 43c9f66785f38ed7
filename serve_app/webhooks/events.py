"""Webhook events on disk: what to send, when it is due, and when to give up."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.webhooks.rules import DeliveryRules

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    body TEXT NOT NULL,
    created REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL
) STRICT
"""


# Lease the event that has been due longest. If the process dies, it becomes due again.
TAKE = """
UPDATE events SET due = :now + :lease_s, tries = tries + 1
 WHERE id = (SELECT id FROM events WHERE due <= :now ORDER BY due, id LIMIT 1)
RETURNING id, url, body, created, tries
"""


@dataclass(frozen=True, slots=True)
class Event:
    """A notification for one target. Its `id` stays the same however often it is sent.

    `type` is dotted (`avatar.job.succeeded`), `data` is JSON and `happened` is in UTC.
    """

    id: str
    type: str
    url: str = field(repr=False)
    data: Mapping[str, Any] = field(repr=False)
    happened: datetime = field(default_factory=lambda: datetime.now(UTC))

    def body(self) -> str:
        """Return the payload that is signed, in the form that the scheme recommends."""
        payload = {
            "type": self.type,
            "timestamp": self.happened.isoformat().replace("+00:00", "Z"),
            "data": dict(self.data),
        }
        return json.dumps(payload, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class TakenEvent:
    """A leased event. `tries` includes this one."""

    id: str
    url: str = field(repr=False)
    body: str = field(repr=False)
    created: float
    tries: int


class EventStore:
    """The SQLite file. Every method blocks for a moment, so call it in a thread."""

    def __init__(self, path: Path, rules: DeliveryRules, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._clock = clock
        self._lock = threading.Lock()
        path.touch(mode=0o600)  # target URLs may contain tokens
        self._db = sqlite3.connect(
            path, timeout=10.0, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(SCHEMA)

    def add(self, event_id: str, url: str, body: str) -> bool:
        """Store an event unless it is there already. Return False if the store is full."""
        now = self._clock()
        with self._transaction() as db:
            if db.execute("SELECT count(*) FROM events").fetchone()[0] >= self._rules.capacity:
                return False
            db.execute(
                "INSERT OR IGNORE INTO events (id, url, body, created, due) VALUES (?, ?, ?, ?, ?)",
                (event_id, url, body, now, now),
            )
        return True

    def take(self) -> TakenEvent | None:
        """Lease the event that has been due longest."""
        values = {"now": self._clock(), "lease_s": self._rules.lease_s}
        with self._transaction() as db:
            row = db.execute(TAKE, values).fetchone()
        return None if row is None else TakenEvent(**dict(row))

    def postpone(self, event_id: str, due: float) -> None:
        """Make an event due again at `due` (Unix seconds)."""
        with self._transaction() as db:
            db.execute("UPDATE events SET due = ? WHERE id = ?", (due, event_id))

    def remove(self, event_id: str) -> None:
        """Delete an event."""
        with self._transaction() as db:
            db.execute("DELETE FROM events WHERE id = ?", (event_id,))

    def next_due(self) -> float | None:
        """Return when the next event is due (Unix seconds), None if there is none."""
        with self._lock:
            due: float | None = self._db.execute("SELECT min(due) FROM events").fetchone()[0]
        return due

    def count(self) -> int:
        """Return the number of stored events."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM events").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:  # some errors roll it back themselves
                    self._db.execute("ROLLBACK")
