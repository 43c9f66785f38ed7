"""Why the gate sends a request back."""

from __future__ import annotations

from typing import Any

from serve_app.contract.errors import error_body
from serve_app.contract.outcomes import refused
from serve_app.gate.callers import Refusal

_RETRY = {"Retry-After": "5"}
NO_BODY = Refusal(
    400,
    "body_not_allowed",
    "A request of this method has no body here.",
    "Send it without Content-Length and Transfer-Encoding.",
)
STARTING = Refusal(
    503,
    "starting",
    "The application is starting and takes no requests yet.",
    "Wait until GET /hc is answered with 200, or send the request again after Retry-After.",
    _RETRY,
)
BUSY = Refusal(
    503,
    "busy",
    "As many requests as this worker takes are waiting already.",
    "Send the request again after Retry-After; the asynchronous API keeps no connection open.",
    _RETRY,
)
UNAVAILABLE = Refusal(
    503,
    "unavailable",
    "The part of this worker that answers was not there, or ended meanwhile.",
    "Send the request again after Retry-After; a job that was accepted goes on.",
    _RETRY,
)
TOO_MANY_READERS = Refusal(
    503,
    "too_many_readers",
    "As many clients as may are reading files.",
    "Send the request again after Retry-After.",
    _RETRY,
)
TOO_SLOW = Refusal(
    408,
    "body_too_slow",
    "The body of the request did not come in time.",
    "Send the head and the body of the request at once.",
    {"Retry-After": "5"},
)


def too_large(max_bytes: int) -> Refusal:
    """Return the refusal of a body over a limit."""
    return Refusal(
        413,
        "body_too_large",
        f"The body of the request is larger than {max_bytes} bytes.",
        "Send addresses of the video and the audio, not their data, and less metadata.",
    )


def refusal_body(refusal: Refusal) -> dict[str, Any]:
    """Return the body of the answer to a request that is not let in now, or not at all."""
    is_passing = refusal.status_code in (408, 429, 503)
    failure = refused(
        refusal.status_code,
        refusal.code,
        refusal.message,
        hint=refusal.hint,
        error_type="processing_error" if refusal.status_code == 503 else "unknown_error",
        retryable=is_passing,
    )
    return error_body("", failure)
