"""What several callers of one job leave with it: idempotency keys, webhooks, metadata.

Whoever enters a job that is here already joins it. Each webhook comes once, each key finds the job
later, and the job shows the metadata of all; their numbers are bounded.
"""

import json
import sqlite3
from typing import Any

from serve_app.jobs import rows
from serve_app.jobs.job import TERMINAL, Job, Ticket, TooManyJoined

MAX_SUBSCRIBERS = 16  # webhooks of one job
MAX_KEYS = 64  # idempotency keys of one job
MAX_METADATA_CHARS = 64 * 1024  # of all who joined a job together


def get(db: sqlite3.Connection, job_id: str) -> Any:
    """Return a job's row, None if the id is unknown."""
    return db.execute(rows.READ + "WHERE id = ?", (job_id,)).fetchone()


def find(db: sqlite3.Connection, job_id: str, idempotency_key: str | None) -> Any:
    """Return the row that the key stands for, else that of the id; None if there is none."""
    if idempotency_key is not None:
        query = "SELECT job_id FROM idempotency_keys WHERE key = ?"
        found = db.execute(query, (idempotency_key,)).fetchone()
        if found is not None:
            return get(db, found["job_id"])
    return get(db, job_id)


def may_come_again(row: sqlite3.Row, gone: Job | None) -> bool:
    """Tell whether a job that is here may be entered anew, instead of joined."""
    if row["status"] in ("failed", "cancelled"):
        return True
    is_gone = gone is not None and (row["id"], row["run"]) == (gone.id, gone.run)
    return is_gone and row["status"] in TERMINAL


def subscribe(db: sqlite3.Connection, job_id: str, ticket: Ticket) -> None:
    """Keep a ticket's idempotency key and webhook with the job, each once.

    Raises:
        TooManyJoined: the transaction has to end without effect.
    """
    if ticket.idempotency_key is not None:
        db.execute(
            "INSERT OR REPLACE INTO idempotency_keys (key, job_id) VALUES (?, ?)",
            (ticket.idempotency_key, job_id),
        )
        _check_number(db, "idempotency_keys", job_id, MAX_KEYS)
    if ticket.webhook_url is not None:
        metadata = None if ticket.metadata is None else json.dumps(ticket.metadata)
        db.execute(
            "INSERT OR IGNORE INTO subscribers (job_id, webhook_url, metadata) VALUES (?, ?, ?)",
            (job_id, ticket.webhook_url, metadata),
        )
        _check_number(db, "subscribers", job_id, MAX_SUBSCRIBERS)


def _check_number(db: sqlite3.Connection, table: str, job_id: str, limit: int) -> None:
    query = f"SELECT count(*) FROM {table} WHERE job_id = ?"
    if db.execute(query, (job_id,)).fetchone()[0] > limit:
        raise TooManyJoined(job_id)


def merged(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return both; the first keeps its values, and is kept alone where both are too much."""
    if not second:
        return first
    both = {**second, **(first or {})}
    return first if first and len(json.dumps(both)) > MAX_METADATA_CHARS else both
