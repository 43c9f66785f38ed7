"""The registry's tables and statements, and the conversion between rows and jobs.

`wanted_until` is the end of a job's keep-alive: until then an open connection waits for it.
"""

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import Job, Origin, PendingNotification, PhaseEvent

SCHEMA_VERSION = 3  # counts up with every change of the tables
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, request TEXT NOT NULL, content_key TEXT NOT NULL, origin TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    run INTEGER NOT NULL DEFAULT 1,
    attempt INTEGER NOT NULL DEFAULT 0, attempt_id TEXT, lost_attempt_id TEXT,
    lease_until REAL, wanted_until REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0, progress TEXT NOT NULL, outcome TEXT,
    metadata TEXT, warnings TEXT NOT NULL DEFAULT '[]', queue_job_id TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, created, id);
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (created, id);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS keys_by_job ON idempotency_keys (job_id);
CREATE TABLE IF NOT EXISTS subscribers (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, webhook_url TEXT NOT NULL,
    metadata TEXT, notified INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (job_id, webhook_url)
);
CREATE INDEX IF NOT EXISTS subscribers_to_tell ON subscribers (job_id) WHERE NOT notified;
CREATE TABLE IF NOT EXISTS phases (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number INTEGER NOT NULL,
    attempt INTEGER NOT NULL, happened REAL NOT NULL, progress TEXT NOT NULL,
    PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
"""

# -- read --  A job as it is shown. A claimed job is not in the queue, as only its claim starts it.
READ = """
SELECT jobs.*, CASE WHEN status = 'queued' AND origin <> 'claimed' THEN (
    SELECT count(*) FROM jobs AS other WHERE other.status = 'queued' AND other.origin <> 'claimed'
       AND (other.created, other.id) <= (jobs.created, jobs.id)) END AS queue_position
  FROM jobs
"""

# -- count_unfinished --
COUNT_UNFINISHED = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')"

# -- take_job --  Lease the oldest queued job, or one whose attempt no longer beats.
TAKE = """
UPDATE jobs SET status = 'running', attempt = attempt + 1, lost_attempt_id = attempt_id,
                attempt_id = :attempt_id, lease_until = :now + :lease_s, updated = :now
 WHERE id = (SELECT id FROM jobs
              WHERE (status = 'queued' OR (status = 'running' AND lease_until < :now))
                AND attempt < :max_attempts AND (:only IS NULL OR id = :only)
                AND (:only IS NOT NULL OR origin <> 'claimed')
                AND id NOT IN (SELECT value FROM json_each(:active))
              ORDER BY created, id LIMIT 1)
RETURNING *
"""

# -- fail_abandoned --  Too many starts, or claimed by an ingress that died and never resumed.
FAIL_ABANDONED = """
UPDATE jobs SET status = 'failed', outcome = :outcome, lease_until = NULL, updated = :now
 WHERE ((status = 'running' AND attempt >= :max_attempts AND lease_until < :now)
     OR (status = 'running' AND origin = 'claimed' AND lease_until < :now - :claim_grace_s)
     OR (status = 'queued' AND origin = 'claimed' AND updated < :now - :claim_grace_s))
   AND id NOT IN (SELECT value FROM json_each(:active))
RETURNING id
"""

# -- cancel_queued --  Queued jobs that were cancelled, or whose clients have all disconnected.
CANCEL_QUEUED = """
UPDATE jobs SET status = 'cancelled', outcome = :outcome, lease_until = NULL, updated = :now
 WHERE status = 'queued' AND (cancel_requested OR (origin = 'sync' AND wanted_until < :now))
   AND (:only IS NULL OR id = :only)
RETURNING id
"""

# -- keep_alive --  Of jobs that clients wait for on open connections.
KEEP_ALIVE = "UPDATE jobs SET wanted_until = ? WHERE id IN (SELECT value FROM json_each(?))"

# -- beat --  Renew an attempt's lease, and the keep-alive if a client of this process waits.
BEAT = """
UPDATE jobs SET lease_until = :now + :lease_s, progress = :progress, updated = :now,
                wanted_until = max(coalesce(wanted_until, 0), :wanted_until)
 WHERE id = :id AND attempt_id = :attempt_id AND status = 'running'
RETURNING cancel_requested, origin, wanted_until
"""

# -- enter --  A new job, or the next run of one that has ended.
ENTER = """
INSERT INTO jobs (id, request, content_key, origin, status, created, updated, wanted_until,
                  progress, metadata, warnings, queue_job_id)
VALUES (:id, :request, :content_key, :origin, 'queued', :now, :now, :wanted_until,
        :progress, :metadata, :warnings, :queue_job_id)
ON CONFLICT (id) DO UPDATE SET
    request = excluded.request, content_key = excluded.content_key, origin = excluded.origin,
    status = 'queued', created = excluded.created, updated = excluded.updated, run = run + 1,
    attempt = 0, attempt_id = NULL, lost_attempt_id = NULL, lease_until = NULL,
    wanted_until = excluded.wanted_until, cancel_requested = 0, progress = excluded.progress,
    outcome = NULL, metadata = excluded.metadata, warnings = excluded.warnings,
    queue_job_id = excluded.queue_job_id
"""

# -- add_phase --  The next change of phase. Numbers continue from the last one.
ADD_PHASE = """
INSERT INTO phases (job_id, number, attempt, happened, progress)
VALUES (:id, 1 + (SELECT coalesce(max(number), 0) FROM phases WHERE job_id = :id),
        :attempt, :now, :progress)
"""

# -- drop_old_phases --  A job that starts many times keeps its latest changes.
DROP_OLD_PHASES = """
DELETE FROM phases WHERE job_id = :id
   AND number <= (SELECT max(number) FROM phases WHERE job_id = :id) - :keep
"""

# -- pending_notifications --  Ended jobs with webhooks that have not been queued.
PENDING_NOTIFICATIONS = """
SELECT jobs.*, NULL AS queue_position, subscribers.webhook_url AS target,
       subscribers.metadata AS target_metadata
  FROM subscribers JOIN jobs ON jobs.id = subscribers.job_id
 WHERE NOT subscribers.notified AND jobs.status IN ('succeeded', 'failed', 'cancelled')
 ORDER BY jobs.updated LIMIT :limit
"""

# -- mark_notified --  Only if the job is still at the end that the webhook reports.
MARK_NOTIFIED = """
UPDATE subscribers SET notified = 1 WHERE job_id = :id AND webhook_url = :url
   AND EXISTS (SELECT 1 FROM jobs WHERE id = :id AND run = :run AND attempt = :attempt
                  AND status = :status)
"""

# -- forget --  The oldest ended jobs beyond `keep`, unless a webhook is due for one.
FORGET = """
DELETE FROM jobs
 WHERE id IN (SELECT id FROM jobs WHERE status IN ('succeeded', 'failed', 'cancelled')
               ORDER BY updated DESC LIMIT -1 OFFSET :keep)
   AND (updated < :too_old OR NOT EXISTS (
        SELECT 1 FROM subscribers WHERE job_id = jobs.id AND NOT notified))
"""

# The attempt was ended because every client had disconnected. Since then a client has come back, or
# the asynchronous API has submitted the job.
CLIENT_IS_BACK = "NOT cancel_requested AND (origin = 'async' OR wanted_until >= :now)"


def get(db: sqlite3.Connection, job_id: str) -> Any:
    """Return a job's row, None if the id is unknown."""
    return db.execute(READ + "WHERE id = ?", (job_id,)).fetchone()


def progress_json(progress: Progress) -> str:
    """Return progress as it is stored."""
    return json.dumps(asdict(progress))


def outcome_json(outcome: Outcome) -> str:
    """Return an outcome as it is stored."""
    return json.dumps({"kind": type(outcome).__name__, **asdict(outcome)})


def job_of(row: sqlite3.Row) -> Job:
    """Return a row of `jobs`. A `queue_position` that the statement did not read is None."""
    return Job(
        id=row["id"],
        request=JobRequest.model_validate_json(row["request"]),
        origin=Origin(row["origin"]),
        status=row["status"],
        created=row["created"],
        updated=row["updated"],
        run=row["run"],
        attempt=row["attempt"],
        attempt_id=row["attempt_id"],
        lost_attempt_id=row["lost_attempt_id"],
        progress=_progress(row["progress"]),
        outcome=_outcome(row["outcome"]),
        metadata=_loads(row["metadata"]),
        warnings=tuple(json.loads(row["warnings"])),
        queue_job_id=row["queue_job_id"],
        queue_position=row["queue_position"] if "queue_position" in row.keys() else None,  # noqa: SIM118
    )


def event_of(row: sqlite3.Row) -> PhaseEvent:
    """Return a row of `phases`."""
    return PhaseEvent(row["number"], row["attempt"], row["happened"], _progress(row["progress"]))


def notification_of(row: sqlite3.Row) -> PendingNotification:
    """Return a row of PENDING_NOTIFICATIONS."""
    return PendingNotification(job_of(row), row["target"], _loads(row["target_metadata"]))


def stored_bytes(row: sqlite3.Row) -> int:
    """Return an upper estimate of the length of a job's JSON, which holds every text of the row."""
    return sum(len(value.encode()) for value in row if isinstance(value, str))


def _progress(text: str) -> Progress:
    fields = json.loads(text)
    return Progress(**{**fields, "phase": Phase(fields["phase"])})


def _outcome(text: str | None) -> Outcome | None:
    if text is None:
        return None
    fields = json.loads(text)
    if fields.pop("kind") == "Success":
        return Success(**{**fields, "warnings": tuple(fields.get("warnings", ()))})
    return Failure(**fields)


def _loads(text: str | None) -> Any:
    return None if text is None else json.loads(text)
