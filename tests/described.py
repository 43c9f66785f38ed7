"""Whether answers, and the examples of a document, are what an OpenAPI document says they are."""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker

METHODS = ("get", "post", "put", "patch", "delete")
FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time", ValueError)
def _is_instant(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@functools.cache
def _ingress_document() -> str:
    """Return the document of an ingress, which is the same for all: making it takes a while."""
    from tests.joints.job_door import Door

    with tempfile.TemporaryDirectory() as folder:
        door = Door(Path(folder))
        door.registry.close()
        return json.dumps(door.app.openapi())


def ingress_document() -> Document:
    """Return the document of an ingress."""
    return Document(json.loads(_ingress_document()))


class Document:
    """An OpenAPI document. An object may have only the fields that the document names, unless it
    says that there may be others.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.whole = document
        self.checked: set[tuple[str, int]] = set()  # operations and their statuses
        strict = copy.deepcopy(document["components"])
        for schema in strict["schemas"].values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
        self._components = strict
        # The path with the most letters outside of braces is the most specific one.
        paths = sorted(document["paths"], key=lambda path: -len(re.sub(r"{.*?}", "", path)))
        self._paths = [(re.compile(re.sub(r"{.*?}", "(.+)", path)), path) for path in paths]

    def operations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every operation, named as `GET /path`."""
        for path, methods in self.whole["paths"].items():
            for method, operation in methods.items():
                if method in METHODS:
                    yield f"{method.upper()} {path}", operation

    def faults(self, schema: dict[str, Any], value: object) -> list[str]:
        """Return what is wrong with a value."""
        whole = {**schema, "components": self._components}
        found = Draft202012Validator(whole, format_checker=FORMATS).iter_errors(value)
        return [f"{error.json_path}: {error.message}" for error in found]

    def check(self, answer: httpx.Response) -> None:
        """Check an answer that has been read, if it came by a route of the document.

        Raises:
            AssertionError: the document does not say that the route answers so.
        """
        request = answer.request
        path = self._path_of(request.url.path)
        if path is None:
            return
        method = "GET" if request.method == "HEAD" else request.method
        operation = self.whole["paths"][path].get(method.lower())
        if operation is None:
            return
        name = f"{method} {path}"
        described = operation["responses"].get(str(answer.status_code))
        assert described is not None, f"{name} does not say that it answers {answer.status_code}"
        self.checked.add((name, answer.status_code))
        if not answer.content:
            return
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in described["content"], f"{name} does not say that it answers {kind}"
        if kind == "application/json":
            faults = self.faults(described["content"][kind]["schema"], answer.json())
            assert not faults, (name, answer.status_code, faults)

    def _path_of(self, called: str) -> str | None:
        return next((path for pattern, path in self._paths if pattern.fullmatch(called)), None)

    def examples(self) -> Iterator[tuple[str, dict[str, Any], object]]:
        """Yield every example with its place and its schema."""
        for name, schema in self.whole["components"]["schemas"].items():
            for example in schema.get("examples", ()):
                yield name, {"$ref": f"#/components/schemas/{name}"}, example
        for name, operation in self.operations():
            described = operation.get("requestBody"), *operation["responses"].values()
            for content in (each.get("content", {}) for each in described if each):
                for media in content.values():
                    yield from _of_media(name, media)
            for parameter in operation.get("parameters", ()):
                yield from _of_media(f"{name} {parameter['name']}", parameter)


def _of_media(place: str, media: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], object]]:
    schema = media.get("schema", {})
    for example in schema.get("examples", ()):
        yield place, schema, example
    if "example" in media:
        yield place, schema, media["example"]
    for example in media.get("examples", {}).values():
        yield place, schema, example["value"]
