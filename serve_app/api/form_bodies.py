"""What the document of the API says about bodies that the gate takes apart: forms and files."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from serve_app.gate.forms import FORM
from serve_app.gate.uploads import JOB_FORMS

_BINARY = {"type": "string", "format": "binary"}


def body_of(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a route says about a body of the content type `kind`, besides any others."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


FILE_FORM = body_of(
    FORM.decode(),
    {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]},
)
FILE = body_of("application/octet-stream", _BINARY)
PIECE = body_of("application/offset+octet-stream", _BINARY)
_JOB_FORM = body_of(
    FORM.decode(),
    {
        "type": "object",
        "description": "The fields of the JSON document, with files in place of addresses. "
        "`params` and `metadata` are JSON.",
        "properties": {"video": _BINARY, "audio": _BINARY},
        "additionalProperties": {"type": "string"},
    },
)


def describe_forms(router: APIRouter) -> None:
    """Say at each route that takes a job that it takes a form too."""
    for route in router.routes:
        if not isinstance(route, APIRoute) or "POST" not in (route.methods or ()):
            continue
        if route.path in JOB_FORMS:
            form = _JOB_FORM["requestBody"]["content"]
            given: dict[str, Any] = route.openapi_extra or {}
            body = given.get("requestBody", {})
            content = {**body.get("content", {}), **form}
            route.openapi_extra = {**given, "requestBody": {**body, "content": content}}
