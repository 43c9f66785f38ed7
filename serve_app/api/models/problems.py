"""Errors, as `serve_app.contract.errors` writes them."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import READ, SENT, AnyProblem, Responses, problems_of, shows

_EXAMPLE: JsonDict = {
    "status": "failed",
    "error_type": "media_error",
    "error_message": "Download failed: the file does not exist or cannot be read.",
    "code": "download_failed",
    "hint": "Check the path, and that the worker's user may read the file.",
    "input": "video",
    "stage": "download",
    "details": {"url": "file:///.../no-such-file.mp4"},
    "retryable": False,
    "stage_times": {"download": 0.001},
    "musetalk_job_id": "wait-4",
}


class Problem(AnyProblem):
    """An error. Programs read `code` and `retryable`, people `error_message` and `hint`."""

    model_config = ConfigDict(json_schema_extra=shows(_EXAMPLE))

    musetalk_job_id: str = Field(description="Empty if the request has not become a job.")
    stack_trace: str = Field("", description="Only with 500, and only with `stack_traces`.")


def read_problems(*statuses: int) -> Responses:
    """Return the errors of a route without a body, and those of `statuses`."""
    return problems_of(Problem, *READ, *statuses)


def sent_problems(*statuses: int) -> Responses:
    """Return the errors of a route with a body, and those of `statuses`."""
    return problems_of(Problem, *SENT, *statuses)
