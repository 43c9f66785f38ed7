"""Instants as the job API writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def instant(seconds: float | None) -> str | None:
    """Return an instant as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
