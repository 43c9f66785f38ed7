"""What can go wrong between a worker and its orchestrator, as types.

    OrchestratorError
    ├── ServiceUnavailable     no answer, or 408, 425, 429, 5xx; retryable
    ├── MalformedAnswer        2xx, but not what the protocol says; retryable
    └── RequestRejected        any other status; repeating the request cannot help
        ├── JobGone            409 or 410 about a job: cancelled, or given to somebody else
        └── JobUnknown         404 about a job: perhaps for a moment only

Messages name the call and what came back. They never hold the API key, addresses with their query
strings, or the request.
"""

from __future__ import annotations

from typing import ClassVar


class OrchestratorError(Exception):
    """A call to the orchestrator was not answered as the protocol promises.

    `status_code` is None when there was no answer at all.
    """

    code: ClassVar[str] = "orchestrator_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class ServiceUnavailable(OrchestratorError):
    """The orchestrator cannot be reached, is too slow, or says that it cannot serve now."""

    code = "service_unavailable"
    retryable = True


class MalformedAnswer(OrchestratorError):
    """The orchestrator accepted the request and answered something that cannot be read."""

    code = "malformed_answer"
    retryable = True


class RequestRejected(OrchestratorError):
    """The orchestrator refused the request: wrong key, wrong fields, unknown worker, redirect."""

    code = "request_rejected"


class JobGone(RequestRejected):
    """The job is cancelled, or another worker's by now. Stop working on it."""

    code = "job_gone"


class JobUnknown(RequestRejected):
    """The orchestrator does not know the job. It has been seen to say so of a live one: go on, and
    believe it only when it goes on saying so.
    """

    code = "job_unknown"
