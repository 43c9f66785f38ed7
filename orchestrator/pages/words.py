"""What the pages say: states, times, amounts and the outcome of an action, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from orchestrator.store.values import without_query

MAX_JSON_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Said:
    """The outcome of an action."""

    text: str
    is_error: bool = False


# What an action may have led to. A page is told the name of one, so that nobody can make a link
# that puts words of his own on it.
SAID: Mapping[str, Said] = MappingProxyType(
    {
        "cancelled": Said("The job is cancelled. Its worker stops at its next report."),
        "retried": Said("The job waits again. All workers may claim it."),
        "redelivered": Said("The webhook is sent again, with the same id."),
        "drained": Said("The worker finishes what it holds and claims nothing more."),
        "undrained": Said("The worker may claim jobs again."),
        "not_cancelled": Said("The job has ended already, so it cannot be cancelled.", True),
        "not_retried": Said(
            "The job cannot be put back: only one that failed, was cancelled or is dead can.", True
        ),
        "job_not_found": Said("There is no such job. Old jobs are deleted.", True),
        "delivery_not_found": Said("The job has no such delivery. Old ones are deleted.", True),
        "worker_not_found": Said("There is no such worker. Silent ones are forgotten.", True),
        "queue_full": Said("As many jobs wait as may wait. Try again when some have ended.", True),
        "state_unavailable": Said("The database does not answer at present. Try again.", True),
    }
)

EVENTS: Mapping[str, str] = MappingProxyType(
    {
        "submitted": "Submitted",
        "claimed": "Claimed",
        "phase": "Next phase",
        "returned": "Interrupted, back in the queue",
        "attempt_failed": "Attempt failed, back in the queue",
        "succeeded": "Succeeded",
        "failed": "Failed: the input cannot be used",
        "dead": "Dead: failed or was interrupted too often",
        "cancelled": "Cancelled",
        "queued_again": "Put back into the queue",
    }
)


def event_name(kind: str) -> str:
    """Return what an event of a job means."""
    return EVENTS.get(kind, kind.replace("_", " ").capitalize())


def clock(instant: float | None) -> str:
    """Return an instant in UTC, to the second."""
    if instant is None:
        return "–"
    return datetime.fromtimestamp(instant, UTC).strftime("%d %b %Y, %H:%M:%S UTC")


def iso(instant: float) -> str:
    """Return an instant for machines."""
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds")


def span(seconds: float | None) -> str:
    """Return a duration in its two largest units: `4.2 s`, `3 min 12 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if 0.05 <= seconds < 10:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(instant: float, now: float) -> str:
    """Return how long ago an instant was, roughly."""
    seconds = int(now - instant)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return "just now" if seconds < 5 else f"{seconds // 5 * 5} s ago"


def dollars(amount: float | None) -> str:
    """Return an amount with as many digits as it needs."""
    if amount is None:
        return "–"
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.4f}"


def pretty(value: Any) -> str:
    """Return a JSON value, indented, and shortened if it is long."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_JSON_CHARS else f"{text[:MAX_JSON_CHARS]}\n…"


def unsigned(url: str) -> str:
    """Return an address without its query, which may be a signature."""
    try:
        return without_query(url)
    except ValueError:
        return "(not an address)"


def origin_of(url: str | None) -> str | None:
    """Return the origin of an address that a browser may fetch a video from; None for any other.

    It becomes part of a header, so that only plain host names and ports are accepted.
    """
    try:
        parts = urlsplit(url or "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    is_plain = host.isascii() and all(letter.isalnum() or letter in ".-" for letter in host)
    if parts.scheme not in ("http", "https") or not host or not is_plain:
        return None
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
