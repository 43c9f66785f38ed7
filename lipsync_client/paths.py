"""Where things are on a server."""

from __future__ import annotations

from urllib.parse import quote

JOBS = "/v1/avatar/jobs"
BATCHES = "/v1/avatar/batches"
AVATARS = "/v1/avatars"
PREVIEW = "/v1/avatar/preview"
ESTIMATE = "/v1/estimate"


def job_path(job_id: str) -> str:
    """Return the path of a job. An id may contain anything."""
    return f"{JOBS}/{quote(job_id, safe='')}"


def batch_path(batch_id: str) -> str:
    """Return the path of a batch."""
    return f"{BATCHES}/{quote(batch_id, safe='')}"


def avatar_path(avatar_id: str) -> str:
    """Return the path of an avatar."""
    return f"{AVATARS}/{quote(avatar_id, safe='')}"
