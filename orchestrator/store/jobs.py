"""What clients do with jobs: submit, read, list, cancel, retry, follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from orchestrator.store import statements
from orchestrator.store.changes import FREE, Row, add_event, change_state, end_attempt
from orchestrator.store.database import Transaction
from orchestrator.store.deliveries import subscribe
from orchestrator.store.errors import JobConflict, JobNotFound, QueueFull
from orchestrator.store.learning import usual_s
from orchestrator.store.queue import order_columns, requirements_of
from orchestrator.store.statements import begins_with
from orchestrator.store.states import AttemptEnd, Change, JobState, after
from orchestrator.store.tables import attempts, events, idempotency_keys, jobs
from orchestrator.store.values import Attempt, Event, Job, JobFilter, NewJob, Page, Rules

_JOB_FIELDS = tuple(name for name in Job.__dataclass_fields__ if name != "requires")
FRESH: dict[str, Any] = {
    "failures": 0,
    "interruptions": 0,
    "unlisted": 0,
    "progress": 0.0,
    "phase": "queued",
    "counts": None,
    "frames": None,
    "output_url": None,
    "metrics": None,
    "receipt": None,
    "error": None,
    "failure": None,
    "published_attempt": None,
}
"""The columns of a run that has not been claimed yet."""


PAGE_CHARS = 1 << 20


def submit(tx: Transaction, new: NewJob, rules: Rules, *, redo: bool = False) -> tuple[Job, bool]:
    """Queue a job, or join the one with its id or idempotency key. Return it and whether it was
    queued by this call.

    A job that has failed, was cancelled or is dead is queued again, with the new content; with
    `redo` also one that has succeeded, because its output is gone. Any other has to have the same
    content; if it has not ended, its next attempt uses the newest addresses.

    Raises:
        JobConflict: the id or the key belongs to another job, or to another client's.
        QueueFull: as many jobs wait as may wait.
        TooManyWebhooks: the job has as many webhooks as one job may have.
    """
    job_id = known_id(tx, new)
    row = tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one_or_none()
    if row is None:
        _refuse_if_full(tx, rules)
        if not _insert(tx, job_id, new, rules):
            # Another transaction has just committed the same id.
            row = tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one()
    is_new = row is None
    if row is None:
        row = tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one()
        add_event(tx, row, "submitted")
    else:
        is_new = _join(tx, row, new, rules, redo=redo)
    remember_key(tx, new, job_id)
    if new.webhook_url is not None:
        subscribe(tx, job_id, new.webhook_url, new.metadata, is_new_run=is_new)
    return job_of(_row(tx, job_id)), is_new


def submit_new(tx: Transaction, entered: Sequence[NewJob], rules: Rules) -> frozenset[str]:
    """Queue those of many jobs of one client whose ids nobody has, in few exchanges with the
    database. Return their ids. They have no idempotency keys, and their number is not bounded here.

    Raises:
        TooManyWebhooks: see `submit`.
    """
    expected_s = usual_s(tx, entered[0].client)
    rows = [_fresh_row(tx, new.id, new, rules, expected_s) for new in entered]
    insert = tx.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
    inserted = frozenset(tx.connection.execute(insert, rows).scalars())
    first = {"number": 1, "kind": "submitted", "happened_at": tx.now, "attempt": 0, "facts": None}
    if inserted:
        tx.connection.execute(events.insert(), [{"job_id": one, **first} for one in inserted])
    for new in entered:
        if new.id in inserted and new.webhook_url is not None:
            subscribe(tx, new.id, new.webhook_url, new.metadata)
    return inserted


def get(tx: Transaction, job_id: str, client: str | None) -> Job:
    """Return a job; `client` None may see those of all.

    Raises:
        JobNotFound: there is none for this client.
    """
    return job_of(_visible(_row_or_none(tx, job_id), client))


def page(tx: Transaction, which: JobFilter, limit: int, cursor: tuple[float, str] | None) -> Page:
    """Return at most `limit` jobs, newest first, those after `cursor`; see `newest`."""
    statement = sa.select(jobs)
    if which.states:
        statement = statement.where(jobs.c.state.in_(which.states))
    for column, wanted in ((jobs.c.client, which.client), (jobs.c.worker_id, which.worker_id)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if which.tried_by is not None:
        tried = sa.select(attempts.c.job_id).where(attempts.c.worker_id == which.tried_by)
        statement = statement.where(jobs.c.id.in_(tried))
    if which.id_prefix is not None:
        statement = statement.where(begins_with(jobs.c.id, which.id_prefix))
    rows, more = newest(tx, statement, limit, cursor)
    return Page(tuple(job_of(row) for row in rows), more)


def newest(
    tx: Transaction,
    statement: sa.Select[Any],
    limit: int,
    cursor: tuple[float, str] | None,
    max_chars: int = PAGE_CHARS,
) -> tuple[list[Row], tuple[float, str] | None]:
    """Return the rows of a statement about `jobs` that come after `cursor`, the newest first.

    They are at most `limit` and have at most about `max_chars` of text, but there is at least one.
    The second value is the cursor of the next page, None on the last one.
    """
    order = sa.tuple_(jobs.c.created_at, jobs.c.id)
    if cursor is not None:
        statement = statement.where(order < sa.tuple_(sa.literal(cursor[0]), sa.literal(cursor[1])))
    statement = statement.add_columns(_CHARS.label("chars"))
    ordered = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    rows: list[Row] = []
    chars = 0
    for row in tx.execute(ordered).mappings():
        chars += row["chars"]
        if len(rows) == limit or (rows and chars > max_chars):
            return rows, (rows[-1]["created_at"], rows[-1]["id"])
        rows.append(row)
    return rows, None


def cancel(tx: Transaction, job_id: str, client: str | None) -> Job:
    """End a queued or a running job. Its worker learns that from its next call.

    Raises:
        JobNotFound: there is none for this client.
        WrongState: it has ended.
    """
    cancel_locked(tx, _visible(_locked_or_none(tx, job_id), client))
    return job_of(_row(tx, job_id))


def cancel_locked(tx: Transaction, row: Row) -> None:
    """End a locked job.

    Raises:
        WrongState: it has ended.
    """
    change_state(tx, row, Change.CANCEL, error="The job was cancelled.", **FREE)
    if row["state"] == JobState.RUNNING:
        end_attempt(tx, row, AttemptEnd.CANCELLED)
    add_event(tx, row, "cancelled")


def retry(tx: Transaction, job_id: str, client: str | None) -> Job:
    """Queue a job again that has failed, was cancelled or is dead, as its next run.

    All workers may claim it, those too that failed it before.

    Raises:
        JobNotFound: there is none for this client.
        WrongState: it waits, runs or has succeeded.
    """
    row = _visible(_locked_or_none(tx, job_id), client)
    _queue_again(tx, row, {})
    return job_of(_row(tx, job_id))


def attempts_of(tx: Transaction, job_id: str) -> tuple[Attempt, ...]:
    """Return all attempts at a job, the first one first."""
    fields = Attempt.__dataclass_fields__
    statement = sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    found = []
    for row in tx.execute(statement).mappings():
        ending = AttemptEnd(row["ending"]) if row["ending"] else None
        found.append(Attempt(**{**{name: row[name] for name in fields}, "ending": ending}))
    return tuple(found)


def events_after(tx: Transaction, job_id: str, number: int) -> tuple[Event, ...]:
    """Return the events of a job that came after event `number`."""
    fields = Event.__dataclass_fields__
    statement = (
        sa.select(events)
        .where(events.c.job_id == job_id, events.c.number > number)
        .order_by(events.c.number)
    )
    rows = tx.execute(statement).mappings()
    return tuple(Event(**{name: row[name] for name in fields}) for row in rows)


def count_queued(tx: Transaction, at_most: int) -> int:
    """Return how many jobs wait, counted no further than `at_most`."""
    waiting = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).limit(at_most)
    return tx.execute(sa.select(sa.func.count()).select_from(waiting.subquery())).scalar() or 0


def job_of(row: Row | Mapping[str, Any]) -> Job:
    """Return a row of `jobs`."""
    values = {name: row[name] for name in _JOB_FIELDS}
    return Job(**{**values, "state": JobState(row["state"]), "requires": requirements_of(row)})


# Reading -------------------------------------------------------------------------------------


def _row_or_none(tx: Transaction, job_id: str) -> Row | None:
    return tx.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()


def _row(tx: Transaction, job_id: str) -> Row:
    return tx.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one()


def _locked_or_none(tx: Transaction, job_id: str) -> Row | None:
    return tx.execute(statements.LOCK_JOB, job_id=job_id).mappings().one_or_none()


def _visible(row: Row | None, client: str | None) -> Row:
    if row is None or (client is not None and row["client"] != client):
        raise JobNotFound("there is no such job")
    return row


_TEXTS = ("id", "video_url", "audio_url", "params", "metadata", "output_url", "metrics", "failure")
_CHARS: sa.ColumnElement[int] = sum(
    (sa.func.coalesce(sa.func.length(sa.cast(jobs.c[name], sa.Text)), 0) for name in _TEXTS),
    start=sa.literal(0),
)


# Submitting ----------------------------------------------------------------------------------


def known_id(tx: Transaction, new: NewJob) -> str:
    """Return the id of the job that the idempotency key belongs to, else that of `new`."""
    if new.idempotency_key is None:
        return new.id
    known = idempotency_keys.c.client == new.client, idempotency_keys.c.key == new.idempotency_key
    job_id = tx.execute(sa.select(idempotency_keys.c.job_id).where(*known)).scalar()
    return new.id if job_id is None else str(job_id)


def remember_key(tx: Transaction, new: NewJob, job_id: str) -> None:
    """Store that the idempotency key of `new` belongs to a job.

    Raises:
        JobConflict: it belongs to another one.
    """
    if new.idempotency_key is None:
        return
    values = {"client": new.client, "key": new.idempotency_key, "job_id": job_id}
    tx.execute(tx.insert(idempotency_keys).values(values).on_conflict_do_nothing())
    if known_id(tx, new) != job_id:
        text = "another request has just used this idempotency key for another job"
        raise JobConflict(text, job_id)


def _refuse_if_full(tx: Transaction, rules: Rules) -> None:
    if rules.max_queued is None:
        return
    if count_queued(tx, rules.max_queued) >= rules.max_queued:
        raise QueueFull(f"{rules.max_queued} jobs wait")


def _content(
    tx: Transaction, new: NewJob, rules: Rules, expected_s: float | None = None
) -> dict[str, Any]:
    return {
        "video_url": new.video_url,
        "audio_url": new.audio_url,
        "aspect_ratio": new.aspect_ratio,
        "resolution": new.resolution,
        "params": dict(new.params) if new.params else None,
        "content_key": new.content_key,
        "metadata": None if new.metadata is None else dict(new.metadata),
        "priority": new.priority,
        "deadline": new.deadline,
        **order_columns(tx, new, rules.routing, expected_s),
        "queued_at": tx.now,
        "updated_at": tx.now,
    }


def _fresh_row(
    tx: Transaction, job_id: str, new: NewJob, rules: Rules, expected_s: float | None = None
) -> dict[str, Any]:
    return {
        "id": job_id,
        "client": new.client,
        "state": JobState.QUEUED,
        "run": 1,
        "attempt": 0,
        "created_at": tx.now,
        **FRESH,
        **_content(tx, new, rules, expected_s),
    }


def _insert(tx: Transaction, job_id: str, new: NewJob, rules: Rules) -> bool:
    values = _fresh_row(tx, job_id, new, rules)
    statement = tx.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
    return tx.execute(statement, **values).one_or_none() is not None


def _join(tx: Transaction, row: Row, new: NewJob, rules: Rules, *, redo: bool) -> bool:
    """Return whether the existing job was queued again."""
    if row["client"] != new.client:
        raise JobConflict("the id is taken", new.id)
    state = JobState(row["state"])
    change = Change.REDO if redo else Change.AGAIN
    if after(state, change) is not None:
        _refuse_if_full(tx, rules)
        _queue_again(tx, row, _content(tx, new, rules), change)
        return True
    if row["content_key"] != new.content_key:
        raise JobConflict("the job has different content", new.id)
    if not state.is_terminal:
        addresses: dict[str, Any] = {"video_url": new.video_url, "audio_url": new.audio_url}
        if new.params:
            addresses["params"] = dict(new.params)  # it may hold addresses too
        tx.execute(statements.UPDATE_JOB, job_id=row["id"], **addresses)
    return False


def _queue_again(
    tx: Transaction, row: Row, content: dict[str, Any], change: Change = Change.AGAIN
) -> None:
    columns = {"queued_at": tx.now, "run": row["run"] + 1, **FRESH, **content}
    columns.pop("updated_at", None)  # `change_state` stores it
    change_state(tx, row, change, **columns)
    add_event(tx, row, "queued_again")
