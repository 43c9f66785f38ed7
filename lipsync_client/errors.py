"""What a client raises.

    LipsyncError
    ├── Unreachable       no answer, or one that broke off
    ├── ApiError          the server refused the request; `code` is one of docs/errors.md
    │   └── NotSupported  the server is older than this call, or has it switched off
    ├── BadAnswer         what answered is not this API, for example a proxy's page
    ├── JobFailed         the job has ended without a result; `job` says more
    ├── WaitTimedOut      the time of a wait is over; the job goes on
    └── WebhookRefused    a webhook that was not signed with the secret

A file that cannot be read or written raises OSError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipsync_client.values import Job


class LipsyncError(Exception):
    """`code` is stable and meant for programs; `message` and `hint` are for people. `retryable`:
    whether the same call may succeed later.
    """

    code = "unknown"
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Unreachable(LipsyncError):
    """There was no answer, or it broke off. `was_sent`: whether the server may have acted on it."""

    code = "unreachable"
    retryable = True

    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message, hint="Check the address, and that the server runs.")
        self.was_sent = was_sent


class BadAnswer(LipsyncError):
    """The answer is not one of this API."""

    code = "bad_answer"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message, hint="Check that the address is that of a lip-sync server.")
        self.status = status


class ApiError(LipsyncError):
    """The server refused the request.

    `input`: the input at fault, `video` or `audio`. `retry_after_s`: when to come back, if the
    server said so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        hint: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        facts = facts or {}
        self.status = status
        self.code = code
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.input: str | None = facts.get("input")
        self.stage: str | None = facts.get("stage")
        self.details: Mapping[str, Any] = facts.get("details") or {}


class NotSupported(ApiError):
    """The server does not have what this call needs."""

    def __init__(self, what: str, *, status: int, hint: str) -> None:
        super().__init__(
            f"This server does not offer {what}.", status=status, code="not_supported", hint=hint
        )


class JobFailed(LipsyncError):
    """The job has ended as `failed` or `cancelled`."""

    def __init__(self, job: Job) -> None:
        failure = job.failure
        super().__init__(
            job.error or f"The job {job.id} was {job.status}.",
            hint=None if failure is None else failure.hint,
        )
        self.job = job
        self.code = job.status if failure is None else failure.code
        self.retryable = failure is not None and failure.retryable


class WaitTimedOut(LipsyncError):
    """The time of a wait is over. The job, or the batch, goes on."""

    code = "wait_timed_out"
    retryable = True

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(
            f"{what} has not ended within {waited_s:g} s.",
            hint="It goes on; wait for it again, or cancel it.",
        )


class WebhookRefused(LipsyncError):
    """The signature of a webhook is wrong, or its time."""

    code = "webhook_refused"
