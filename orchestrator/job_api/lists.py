"""What a list of jobs is asked for: which of them, how many, and after which one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]
Cursor = tuple[float, str]


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("it has a NUL character")
    return value


QueryText = Annotated[str, AfterValidator(_without_nul)]


class JobQuery(BaseModel):
    """The query of `GET /v1/avatar/jobs`."""

    status: Status | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: QueryText | None = Field(
        None, max_length=400, description="The `next_cursor` of the page before."
    )


def page_body(bodies: list[dict[str, Any]], cursor: Cursor | None) -> dict[str, Any]:
    """Return one page of jobs and where the next one begins."""
    return {"jobs": bodies, "next_cursor": write_cursor(cursor)}


def write_cursor(cursor: Cursor | None) -> str | None:
    """Return the cursor of a page as text."""
    return None if cursor is None else f"{cursor[0]!r}:{cursor[1]}"


def read_cursor(cursor: str | None) -> Cursor | None:
    """Return a cursor that `write_cursor` wrote.

    Raises:
        RequestValidationError: it did not.
    """
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        reason = "use the next_cursor of an earlier answer"
        wrong = {"type": "value_error", "loc": ("cursor",), "msg": reason, "input": None}
        raise RequestValidationError([wrong]) from None
