"""Changes of one locked job: its row, its attempt and its events, always together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from orchestrator.store import statements
from orchestrator.store.database import Transaction
from orchestrator.store.deliveries import announce
from orchestrator.store.errors import WrongState
from orchestrator.store.states import AttemptEnd, Change, JobState, after
from orchestrator.store.tables import events
from orchestrator.store.values import Failure, Rules

MAX_EVENTS = 200  # kept of one job, the newest

Row = sa.RowMapping

FREE: Mapping[str, Any] = {
    "worker_id": None,
    "leased_at": None,
    "lease_until": None,
    "unlisted": 0,
}
"""The columns of a job that no worker holds."""


def change_state(tx: Transaction, row: Row, change: Change, **columns: object) -> JobState:
    """Store a change of a locked job's state, with other columns. Return the new state.

    Raises:
        WrongState: the table of states has no such change.
    """
    state = after(JobState(row["state"]), change)
    if state is None:
        raise WrongState(row["state"])
    ended_at = tx.now if state.is_terminal else None
    values = {"state": state, "updated_at": tx.now, "ended_at": ended_at, **columns}
    tx.execute(statements.UPDATE_JOB, job_id=row["id"], **values)
    if state.is_terminal:
        announce(tx, row["id"])
    return state


def end_attempt(
    tx: Transaction, row: Row, ending: AttemptEnd, failure: Failure | None = None
) -> None:
    """Store how the running attempt of a locked job ended."""
    values = {
        "ending": ending,
        "ended_at": tx.now,
        "phase": row["phase"],
        "error": failure.error if failure else None,
        "failure": dict(failure.facts) if failure and failure.facts else None,
    }
    tx.execute(statements.END_ATTEMPT, of_job=row["id"], of_number=row["attempt"], **values)


def interrupt(tx: Transaction, row: Row, rules: Rules, reason: str) -> None:
    """Take a locked running job from its worker. It goes back to the queue.

    That is not a failure of the job. Only a run that is interrupted again and again ends.
    """
    end_attempt(tx, row, AttemptEnd.INTERRUPTED, Failure(reason))
    count = row["interruptions"] + 1
    if count >= rules.max_interruptions:
        error = f"The job was interrupted {count} times; the last time: {reason}"
        change_state(tx, row, Change.BURY, interruptions=count, error=error, **FREE)
        add_event(tx, row, "dead", error=error)
        return
    columns = {"interruptions": count, "progress": 0.0, "phase": "queued", "counts": None}
    change_state(tx, row, Change.RETURN, **columns, **FREE)
    add_event(tx, row, "returned", reason=reason, worker_id=row["worker_id"])


def add_event(tx: Transaction, row: Row, kind: str, **facts: object) -> None:
    """Append an event of a locked job, and drop the oldest ones beyond the limit."""
    attempt = facts.pop("attempt", row["attempt"])
    append_event(tx, row["id"], attempt, kind, facts)


def append_event(
    tx: Transaction, job_id: str, attempt: object, kind: str, facts: Mapping[str, object]
) -> None:
    """Append an event of a locked job whose row the caller does not have; see `add_event`."""
    number: int = tx.execute(
        statements.APPEND_EVENT,
        job_id=job_id,
        kind=kind,
        happened_at=tx.now,
        attempt=attempt,
        facts=dict(facts) or None,
    ).scalar_one()
    if number > MAX_EVENTS:
        too_old = events.c.number <= number - MAX_EVENTS
        tx.execute(events.delete().where(events.c.job_id == job_id, too_old))
