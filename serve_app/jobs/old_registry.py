"""Brings the jobs of the registry that earlier releases wrote into the job store, once.

Those releases had tables of their own in the same file. That file is set aside under another name,
its jobs are copied in one transaction, and then it is removed. If the process dies in between, the
next start goes on; what has been copied already is left as it is. Jobs that ran are copied as
running. Their attempts ended with the old process, so they are started again when their lease has
expired.

A file that no release wrote, or one that cannot be read, is kept under its new name.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.store.database import Database, Transaction
from orchestrator.store.jobs import FRESH
from orchestrator.store.queue import order_columns
from orchestrator.store.states import JobState
from orchestrator.store.tables import (
    attempts,
    events,
    idempotency_keys,
    ingress_jobs,
    jobs,
    webhooks,
)
from orchestrator.store.values import Rules
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs import rows
from serve_app.jobs.job import ABANDONED, Origin
from serve_app.jobs.statements import CLAIMS, HERE
from serve_app.jobs.submissions import new_job

logger = logging.getLogger(__name__)

READABLE_VERSION = 3
SUFFIX, KEPT_SUFFIX = ".old", ".unreadable"


def set_aside(path: Path) -> None:
    """Rename a file that the job store has not written, so that a new one can be made.

    Nothing is changed in it, apart from what its write-ahead log has.
    """
    aside = path.with_name(path.name + SUFFIX)
    if not path.exists() or path.stat().st_size == 0 or aside.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as db:
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
            if "alembic_version" in tables:
                return
            # The log becomes part of the file, unless another process still uses both.
            [mode] = db.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                return
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            return  # it is locked; opening it fails, and the next start tries again
    path.replace(aside)


def bring_over(path: Path, database: Database) -> None:
    """Copy the jobs of the file that was set aside, if there is one, and remove it.

    Raises:
        StoreUnavailable: they cannot be written now. The file stays, for the next start.
    """
    aside = path.with_name(path.name + SUFFIX)
    if not aside.exists():
        return
    try:
        with closing(sqlite3.connect(aside)) as old:
            old.row_factory = sqlite3.Row
            if old.execute("PRAGMA user_version").fetchone()[0] != READABLE_VERSION:
                raise sqlite3.DatabaseError("it is of another version")
            with database.write() as tx:
                count = sum(_copy(tx, old, row) for row in old.execute("SELECT * FROM jobs"))
    except sqlite3.Error as exc:
        kept = path.with_name(path.name + KEPT_SUFFIX)
        aside.replace(kept)
        logger.error(
            "the job registry of an earlier release cannot be read, its file is kept",
            extra={"file": str(kept), "error": str(exc)},
        )
        return
    aside.unlink()
    logger.info("jobs of an earlier release were brought over", extra={"jobs": count})


def _copy(tx: Transaction, old: sqlite3.Connection, row: sqlite3.Row) -> bool:
    """Copy a job and what belongs to it. Return False if it is there already."""
    try:
        request = JobRequest.model_validate_json(row["request"])
    except ValidationError:
        logger.error("a job of an earlier release is lost", extra={"job_id": row["id"]})
        return False
    insert = tx.insert(jobs).values(_job_columns(tx, row, request))
    if not tx.execute(insert.on_conflict_do_nothing()).rowcount:
        return False
    tx.execute(
        ingress_jobs.insert(),
        job_id=row["id"],
        origin=row["origin"],
        wanted_until=row["wanted_until"] or 0.0,
        cancel_requested=bool(row["cancel_requested"]),
        uncounted=0,
        queue_job_id=row["queue_job_id"],
        warnings=json.loads(row["warnings"]),
        run_warnings=list(_warnings_of(_outcome_of(row["outcome"]))),
    )
    if row["status"] == "running":
        _copy_attempt(tx, row)
    _copy_callers(tx, old, row["id"])
    _copy_phases(tx, old, row["id"])
    return True


def _job_columns(tx: Transaction, row: sqlite3.Row, request: JobRequest) -> dict[str, Any]:
    metadata = None if row["metadata"] is None else json.loads(row["metadata"])
    new = new_job(request, metadata, CLAIMS if row["origin"] == Origin.CLAIMED else HERE)
    outcome = _outcome_of(row["outcome"])
    state = _state_of(row["status"], outcome)
    is_running = state is JobState.RUNNING
    progress = _progress_of(row["progress"])
    told = rows.progress_columns(progress)
    if outcome is not None:
        told = rows.ended_columns(outcome, progress)
    asked = Transaction(tx.connection, row["created"])  # its place in the queue
    return {
        **FRESH,
        "id": row["id"],
        "client": new.client,
        "state": state,
        "video_url": new.video_url,
        "audio_url": new.audio_url,
        "aspect_ratio": new.aspect_ratio,
        "resolution": new.resolution,
        "params": new.params or None,
        "content_key": new.content_key,
        "metadata": metadata,
        "priority": new.priority,
        **order_columns(asked, new, Rules().routing),
        "run": row["run"],
        "attempt": row["attempt"],
        "worker_id": row["attempt_id"] if is_running else None,
        "leased_at": row["updated"] if is_running else None,
        "lease_until": row["lease_until"] if is_running else None,
        "created_at": row["created"],
        "queued_at": row["created"],
        "updated_at": row["updated"],
        "ended_at": row["updated"] if state.is_terminal else None,
        **told,
    }


def _copy_attempt(tx: Transaction, row: sqlite3.Row) -> None:
    tx.execute(
        attempts.insert(),
        job_id=row["id"],
        number=row["attempt"],
        run=row["run"],
        worker_id=row["attempt_id"],
        worker_type="ingress",
        started_at=row["updated"],
    )


def _copy_callers(tx: Transaction, old: sqlite3.Connection, job_id: str) -> None:
    keys = old.execute("SELECT key FROM idempotency_keys WHERE job_id = ?", (job_id,))
    for [key] in keys:
        tx.execute(idempotency_keys.insert(), client=HERE, key=key, job_id=job_id)
    # The others have been called.
    due = "SELECT * FROM subscribers WHERE job_id = ? AND NOT notified"
    for hook in old.execute(due, (job_id,)):
        tx.execute(
            webhooks.insert(),
            job_id=job_id,
            url=hook["webhook_url"],
            metadata=None if hook["metadata"] is None else json.loads(hook["metadata"]),
        )


def _copy_phases(tx: Transaction, old: sqlite3.Connection, job_id: str) -> None:
    for phase in old.execute("SELECT * FROM phases WHERE job_id = ?", (job_id,)):
        tx.execute(
            events.insert(),
            job_id=job_id,
            number=phase["number"],
            kind="phase",
            happened_at=phase["happened"],
            attempt=phase["attempt"],
            facts=rows.phase_facts(_progress_of(phase["progress"])),
        )


def _progress_of(text: str) -> Progress:
    fields = json.loads(text)
    return Progress(**{**fields, "phase": Phase(fields["phase"])})


def _outcome_of(text: str | None) -> Outcome | None:
    if text is None:
        return None
    fields = json.loads(text)
    if fields.pop("kind") == "Success":
        return Success(**{**fields, "warnings": tuple(fields.get("warnings", ()))})
    return Failure(**fields)


def _warnings_of(outcome: Outcome | None) -> tuple[str, ...]:
    return outcome.warnings if isinstance(outcome, Success) else ()


def _state_of(status: str, outcome: Outcome | None) -> JobState:
    """Return the state; a failure that was not the input's leaves a job dead, as it does now."""
    is_dead = isinstance(outcome, Failure) and (
        outcome.status_code >= ABANDONED.status_code and not outcome.cancelled
    )
    return JobState.DEAD if status == "failed" and is_dead else JobState(status)
