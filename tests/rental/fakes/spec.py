"""A vendor's OpenAPI specification, to which a fake holds each request and each answer."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

SPECS = Path(__file__).resolve().parents[4] / "shared" / "specs"
HERE = "urn:specification"


@lru_cache
def load_spec(name: str) -> Spec | None:
    """Return the specification of that file, or None where it is not at hand."""
    file = SPECS / name
    if not file.is_file():
        return None
    text = file.read_text()
    if file.suffix == ".json":
        return Spec(json.loads(text))
    return Spec(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


class Spec:
    """The operations of one specification. Each check returns what is wrong, in words."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document = _absolute(document)
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry = Registry().with_resource(HERE, resource)
        self._paths = [(_pattern(path), path) for path in document["paths"]]

    def request(self, method: str, path: str, query: dict[str, str], body: Any) -> list[str]:
        """Check one request: its path, its parameters and its body, unknown fields included."""
        template, values = self._find(path)
        if template is None:
            return [f"there is no path {path}"]
        item = self._document["paths"][template]
        operation = item.get(method.lower())
        if operation is None:
            return [f"{template} has no {method}"]
        parameters = [self._at(one) for one in item.get("parameters", [])]
        parameters += [self._at(one) for one in operation.get("parameters", [])]
        wrong = self._parameters(parameters, values, query)
        described = self._at(operation.get("requestBody", {})).get("content", {})
        if not described:
            return wrong + ([f"{template} takes no body"] if body is not None else [])
        schema = next(iter(described.values()))["schema"]
        return wrong + self._errors(schema, body) + self._unknown(schema, body)

    def answer(self, method: str, path: str, status: int, body: Any) -> list[str]:
        """Check one answer: its status and its body."""
        template, _ = self._find(path)
        if template is None:
            return []  # the request was refused already
        answers = self._document["paths"][template][method.lower()]["responses"]
        described = answers.get(str(status))
        if described is None:
            return [f"{method} {template} never answers {status}"]
        content = self._at(described).get("content", {})
        if not content:
            return [] if body is None else [f"{method} {template} {status} has no body"]
        return self._errors(next(iter(content.values()))["schema"], body)

    def _find(self, path: str) -> tuple[str | None, dict[str, str]]:
        for pattern, template in self._paths:
            found = pattern.fullmatch(path)
            if found is not None:
                return template, found.groupdict()
        return None, {}

    def _parameters(
        self, parameters: list[dict[str, Any]], values: dict[str, str], query: dict[str, str]
    ) -> list[str]:
        wrong = []
        for one in parameters:
            if one["in"] == "path":
                wrong += self._errors(one["schema"], _typed(one["schema"], values[one["name"]]))
            elif one["in"] == "query" and one["name"] in query:
                wrong += self._errors(one["schema"], _typed(one["schema"], query[one["name"]]))
        known = {one["name"] for one in parameters if one["in"] == "query"}
        return wrong + [f"unknown parameter {name}" for name in query if name not in known]

    def _errors(self, schema: dict[str, Any], body: Any) -> list[str]:
        validator = Draft202012Validator(schema, registry=self._registry)
        return [
            f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(body)
        ]

    def _unknown(self, schema: dict[str, Any], body: Any, place: str = "$") -> list[str]:
        """Return fields that the specification does not have, although it would accept them."""
        if isinstance(body, list):
            items = self._at(schema).get("items", {})
            return [text for one in body for text in self._unknown(items, one, f"{place}[]")]
        if not isinstance(body, dict):
            return []
        fields, is_open = self._fields(schema)
        found = []
        for name, value in body.items():
            if name in fields:
                found += self._unknown(fields[name], value, f"{place}.{name}")
            elif not is_open:
                found.append(f"{place}: unknown field {name}")
        return found

    def _fields(self, schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        whole = self._at(schema)
        fields = dict(whole.get("properties", {}))
        is_open = "additionalProperties" in whole and whole["additionalProperties"] is not False
        for key in ("allOf", "anyOf", "oneOf"):
            for part in whole.get(key, []):
                more, also = self._fields(part)
                fields |= more
                is_open = is_open or also
        # A schema that describes no field at all, such as a filter of a search, takes any.
        return fields, is_open or not fields

    def _at(self, part: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in part:
            found: Any = self._document
            for key in part["$ref"].removeprefix(f"{HERE}#/").split("/"):
                found = found[key.replace("~1", "/").replace("~0", "~")]
            part = found
        return part


def _absolute(part: Any) -> Any:
    """Return a document whose references name it, so that its parts can be used alone."""
    if isinstance(part, list):
        return [_absolute(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        key: f"{HERE}{value}" if key == "$ref" and isinstance(value, str) else _absolute(value)
        for key, value in part.items()
    }


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def _typed(schema: dict[str, Any], text: str) -> Any:
    kind = schema.get("type")
    if kind == "integer":
        return int(text) if text.lstrip("-").isdigit() else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    return text.split(",") if kind == "array" else text
