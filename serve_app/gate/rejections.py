"""Rejections: why a request is sent back before any route has read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serve_app.contract.codes import ErrorCode
from serve_app.contract.errors import error_body
from serve_app.contract.outcomes import Failure, rejected


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request is rejected, in the parts of an error answer; `headers` go with it."""

    status_code: int
    code: ErrorCode
    message: str
    hint: str
    headers: dict[str, str] = field(default_factory=dict)

    def as_failure(self) -> Failure:
        """Return the same as the failure that an error answer is made of."""
        is_busy = self.status_code == 503
        return rejected(
            self.status_code,
            self.code,
            self.message,
            hint=self.hint,
            error_type="processing_error" if is_busy else "unknown_error",
            retryable=self.status_code in (408, 429, 503),
        )

    def body(self) -> dict[str, Any]:
        """Return the body of the error answer."""
        return error_body("", self.as_failure())


_RETRY = {"Retry-After": "5"}
NO_BODY = Rejection(
    400,
    "body_not_allowed",
    "A request with this method may not have a body here.",
    "Send it without Content-Length and Transfer-Encoding.",
)
STARTING = Rejection(
    503,
    "starting",
    "The application is starting and does not accept requests yet.",
    "Wait until GET /hc returns 200, or send the request again after Retry-After.",
    _RETRY,
)
BUSY = Rejection(
    503,
    "busy",
    "This worker already has as many requests waiting as it accepts.",
    "Send the request again after Retry-After; the asynchronous API keeps no connection open.",
    _RETRY,
)
UNAVAILABLE = Rejection(
    503,
    "unavailable",
    "The part of this worker that answers requests was not running, or it stopped meanwhile.",
    "Send the request again after Retry-After; a job that was accepted continues.",
    _RETRY,
)
TOO_MANY_READERS = Rejection(
    503,
    "too_many_readers",
    "The largest number of clients that may read files at once has been reached.",
    "Send the request again after Retry-After.",
    _RETRY,
)
TOO_SLOW = Rejection(
    408,
    "body_too_slow",
    "The body of the request did not arrive in time.",
    "Send the headers and the body of the request together.",
    _RETRY,
)
TOO_MANY_WRITERS = Rejection(
    503,
    "too_many_uploads",
    "The largest number of clients that may upload at once has been reached.",
    "Send the request again after Retry-After.",
    _RETRY,
)
UPLOAD_TOO_SLOW = Rejection(
    408,
    "body_too_slow",
    "The file did not arrive in time.",
    "Send it again, by the tus protocol if the network is slow: it goes on where it was cut off.",
    _RETRY,
)


def invalid_form(message: str) -> Rejection:
    """Return the rejection of a form that cannot be read; `message` says why."""
    return Rejection(
        422,
        "invalid_request",
        message,
        "Send multipart/form-data as browsers and `curl -F` do; docs/api.md has examples.",
    )


def too_large(max_bytes: int) -> Rejection:
    """Return the rejection of a body over a limit."""
    return Rejection(
        413,
        "body_too_large",
        f"The body of the request is larger than {max_bytes} bytes.",
        "Send addresses of the files, or upload them (POST /v1/uploads), and less metadata.",
    )
