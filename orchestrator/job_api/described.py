"""The answers of the job API, as its document describes them.

Models of answers describe what a board returns. They neither check nor change it: tests validate
real answers against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Responses = dict[int | str, dict[str, Any]]
Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]

RETRY_AFTER = {
    "Retry-After": {
        "description": "After how many seconds the request may be sent again.",
        "schema": {"type": "integer"},
    }
}
LOCATION = {"Location": {"description": "The path of what was made.", "schema": {"type": "string"}}}
_HEADERS: Mapping[int, dict[str, Any]] = {429: RETRY_AFTER, 503: RETRY_AFTER}
_MEANINGS: Mapping[int, str] = {
    400: "A request with this method may not have a body.",
    401: "A key is missing.",
    403: "The key is wrong, or callers from elsewhere are not admitted.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "It belongs to different content, or its state does not allow this.",
    410: "It is no longer here.",
    412: "The version of the protocol is another one.",
    413: "The body is too large.",
    415: "The body has another type than expected.",
    416: "The file has no such bytes.",
    422: "The request is not valid, or an input is at fault. The message names what to correct.",
    429: "The queue is full, or there were too many requests or wrong keys.",
    500: "This request has met a fault of the service.",
    503: "The service cannot take the request now. It may be sent again.",
    507: "There is no room left for the file.",
}
READ = (400, 401, 403, 422, 429, 500, 503)
"""What every route without a body may answer in place of its answer."""
SENT = (401, 403, 408, 413, 422, 429, 500, 503)
"""What every route with a body may answer in place of its answer."""


def shows(*examples: JsonDict) -> JsonDict:
    """Return the `json_schema_extra` of a model with examples."""
    return {"examples": list(examples)}


class AnyProblem(BaseModel):
    """An error. Programs read `code` and `retryable`, people `error_message` and `hint`."""

    status: str = Field(description="Always `failed`.")
    error_type: str = Field(
        description="`media_error`: an input is at fault. `processing_error`: the service is."
    )
    error_message: str = Field(description="One sentence on what is wrong.")
    code: str = Field(description="Stable. docs/errors.md lists all codes; more may be added.")
    hint: str = Field(description="What to do about it.")
    input: str | None = Field(description="`video` or `audio` if that file is at fault.")
    stage: str = Field(description="Where the job was.")
    details: dict[str, Any] = Field(description="More for people, such as the field at fault.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    stage_times: dict[str, float] = Field(description="Seconds of work until then, by stage.")


class Done(BaseModel):
    """A request was done that has no other answer."""

    model_config = ConfigDict(json_schema_extra=shows({"detail": "Cancellation requested"}))

    detail: str


@dataclass(frozen=True, slots=True)
class JobModels:
    """The models of one service: of a job, of a page of jobs, and of an error."""

    job: type[BaseModel]
    page: type[BaseModel]
    problem: type[BaseModel]

    def read(self, *statuses: int) -> Responses:
        """Return the errors of a route without a body, and those of `statuses`."""
        return problems_of(self.problem, *READ, *statuses)

    def sent(self, *statuses: int) -> Responses:
        """Return the errors of a route with a body, and those of `statuses`."""
        return problems_of(self.problem, *SENT, *statuses)


def problems_of(model: type[BaseModel], *statuses: int) -> Responses:
    """Return errors of a route as FastAPI's `responses` has them."""
    return {status: _problem(model, status) for status in sorted({*statuses})}


def _problem(model: type[BaseModel], status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "model": model,
        "description": _MEANINGS.get(status) or HTTPStatus(status).phrase,
    }
    if status in _HEADERS:
        described["headers"] = _HEADERS[status]
    return described
