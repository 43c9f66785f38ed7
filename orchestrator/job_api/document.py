"""The OpenAPI document of a service, with whole examples and a name for every body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter


def describe(app: FastAPI) -> None:
    """Let the document of an application show examples whole, and name all bodies.

    FastAPI leaves out whatever is None, in the document itself as well as inside examples, and a
    field that is null is not one that is absent. A body that a route describes by itself has no
    name that a generated client could give to its type. Call this when all routes have been added.
    """
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = made()
            for name, examples in _examples(app):
                whole["components"]["schemas"][name]["examples"] = examples
            _name_bodies(whole)
        document: dict[str, Any] = app.openapi_schema or {}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _name_bodies(document: dict[str, Any]) -> None:
    """Move the schemas of bodies that routes describe by themselves to the other schemas."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {})
            schema = body.get("schema", {})
            if "properties" in schema:
                document["components"]["schemas"].setdefault(schema["title"], schema)
                body["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}


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
