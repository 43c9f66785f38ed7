"""Brings the webhooks that an earlier release had not delivered into the job store, once.

That release kept them in a file of its own beside the registry, ready to be sent. A webhook whose
job or batch has been forgotten meanwhile is lost, and that is logged.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.store import deliveries
from orchestrator.store.database import Database, Transaction
from orchestrator.store.tables import batches, jobs

logger = logging.getLogger(__name__)

NAME = "webhooks.sqlite3"
SIDE_FILES = ("-wal", "-shm")


def bring_over_events(registry: Path, database: Database) -> None:
    """Queue what the file beside `registry` has, and remove that file; then queue the webhooks of
    jobs that had ended, and for which that release had queued nothing yet.

    Raises:
        StoreUnavailable: they cannot be written now. The file stays, for the next start.
    """
    path = registry.with_name(NAME)
    events = _events_of(path) if path.exists() else None
    with database.write() as tx:
        count = sum(_queue(tx, event) for event in events or ())
        deliveries.announce_untold(tx)
    if events is not None:
        for file in (path, *(path.with_name(path.name + end) for end in SIDE_FILES)):
            file.unlink(missing_ok=True)
        facts = {"brought_over": count, "lost": len(events) - count}
        logger.info("webhooks of an earlier release were brought over", extra=facts)


def _events_of(path: Path) -> list[dict[str, Any]] | None:
    """Return the events of a file; None if it cannot be read, and has to stay."""
    try:
        with closing(sqlite3.connect(path)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("SELECT * FROM events ORDER BY created")]
    except sqlite3.Error as exc:
        facts = {"file": str(path), "error": str(exc)}
        logger.error("the webhooks of an earlier release cannot be read", extra=facts)
        return None


def _queue(tx: Transaction, event: dict[str, Any]) -> bool:
    """Queue one event. Return False if what it is about is not there any more."""
    body = json.loads(event["body"])
    about = body["data"]["id"]
    is_of_batch = body["type"].startswith("avatar.batch.")
    table = batches if is_of_batch else jobs
    client = tx.execute(sa.select(table.c.client).where(table.c.id == about)).scalar()
    if client is None:
        return False
    deliveries.bring_over(
        tx,
        id=event["id"],
        client=client,
        url=event["url"],
        event=body["type"],
        data=body["data"],
        happened_at=datetime.fromisoformat(body["timestamp"]).timestamp(),
        **({"batch_id": about} if is_of_batch else {"job_id": about}),
    )
    return True
