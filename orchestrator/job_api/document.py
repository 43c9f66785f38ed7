"""The OpenAPI document of a service, with examples as they were written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter


def describe(app: FastAPI) -> None:
    """Let the document of an application show examples whole.

    FastAPI leaves out whatever is None, in the document itself as well as inside examples, and a
    field that is null is not one that is absent. Call this when all routes have been added.
    """
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = made()["components"]["schemas"]
            for name, examples in _examples(app):
                schemas[name]["examples"] = examples
        document: dict[str, Any] = app.openapi_schema or {}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _examples(app: FastAPI) -> Iterator[tuple[str, list[Any]]]:
    """Yield the examples of every model of an answer, by the model's name in the document."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        models = route.response_model, *(each.get("model") for each in route.responses.values())
        for model in models:
            if model is None:
                continue
            schema = TypeAdapter(model).json_schema(mode="serialization")
            for name, part in {**schema.get("$defs", {}), schema.get("title"): schema}.items():
                if "examples" in part:
                    yield name, part["examples"]
