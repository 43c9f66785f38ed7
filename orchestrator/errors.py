"""What can go wrong between a worker and its orchestrator, as types.

    OrchestratorError
    ├── ServiceUnavailable     no answer, or 408, 425, 429, 5xx; retryable
    ├── MalformedAnswer        2xx, but not as the protocol defines it; retryable
    └── CallRejected        any other status; a retry cannot help
        ├── JobGone            409 or 410 about a job: cancelled, or given to another worker
        └── JobUnknown         404 about a job: perhaps for a moment only

Messages contain the call and its answer. They never contain the API key, query strings or the
request.
"""

from __future__ import annotations

from typing import ClassVar


class OrchestratorError(Exception):
    """A call to the orchestrator was not answered as the protocol defines it.

    `status_code` is None when there was no answer at all.
    """

    code: ClassVar[str] = "orchestrator_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class ServiceUnavailable(OrchestratorError):
    """The orchestrator cannot be reached, is too slow, or answered that it is unavailable."""

    code = "service_unavailable"
    retryable = True


class MalformedAnswer(OrchestratorError):
    """The orchestrator accepted the request, but its answer cannot be read."""

    code = "malformed_answer"
    retryable = True


class CallRejected(OrchestratorError):
    """The orchestrator refused the request, for example because its key or a field is invalid."""

    code = "call_rejected"


class JobGone(CallRejected):
    """The job is cancelled or belongs to another worker. Stop it."""

    code = "job_gone"


class JobUnknown(CallRejected):
    """The orchestrator does not know the job.

    It has been seen to answer this for a live job, so stop a job only if the answer is repeated.
    """

    code = "job_unknown"
