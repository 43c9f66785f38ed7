"""A configuration file read with its line numbers, so that every fault can be shown where it is.

Importing this loads neither Ray nor torch. Ray's own schema allows unknown keys and so misses a
misspelt one. `faults_of` compares the document with any pydantic model, key by key.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]  # keys and indices, from the document's root

MAX_SHOWN = 60  # characters of a wrong value that a sentence repeats


class ConfigInvalid(Exception):
    """The application cannot start with this configuration or on this machine.

    `faults` holds a sentence about each reason.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed file: its values, and the line (counted from 1) of every place in it."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int]

    def fault(self, place: Place, text: str) -> str:
        """Return a sentence about a place, or about the nearest place around it that exists."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path}:{self.lines.get(place, 1)}: {text}"


def read_config_file(path: Path) -> ConfigFile:
    """Read a configuration file.

    Raises:
        ConfigInvalid: there is no such file, it is not YAML, or a key occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigInvalid(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        line = 1 if exc.problem_mark is None else exc.problem_mark.line + 1
        raise ConfigInvalid(f"{path}:{line}: this is not YAML: {exc.problem}") from None
    except yaml.YAMLError as exc:
        raise ConfigInvalid(f"{path} is not YAML: {' '.join(str(exc).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigInvalid(f"{path}:1: a configuration is a mapping of keys to values")
    lines: dict[Place, int] = {}
    try:
        again = list(_note_lines(root, (), lines))
    except RecursionError:
        raise ConfigInvalid(f"{path}: a value contains itself, by an alias") from None
    twice = [f"{path}:{line}: `{key}` comes twice" for key, line in again]
    if twice:
        raise ConfigInvalid(*twice)
    return ConfigFile(path, values, lines)


def _note_lines(
    node: yaml.Node, place: Place, lines: dict[Place, int]
) -> Iterator[tuple[str, int]]:
    """Fill `lines`; yield every key that occurs twice in its mapping, with its line."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _note_lines(item, (*place, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*place, str(key.value))
            if below in lines:
                yield str(key.value), key.start_mark.line + 1
            # A value may begin on the next line, but its line is that of its key.
            lines[below] = key.start_mark.line + 1
            yield from _note_lines(value, below, lines)


def faults_of(model: type[BaseModel], file: ConfigFile, place: Place = ()) -> list[str]:
    """Compare the value at `place` with `model`; return a sentence for each fault."""
    value = _value_at(file, place)
    if not isinstance(value, dict):
        return [file.fault(place, "a mapping of keys to values is expected here")]
    faults = [file.fault(*unknown) for unknown in _unknown_keys(model, value, place)]
    try:
        model.model_validate(value)
    except ValidationError as exc:
        for error in exc.errors():
            if error["type"] != "extra_forbidden":  # reported above, with a suggestion
                faults.append(file.fault((*place, *error["loc"]), _sentence(error)))
    return faults


def _value_at(file: ConfigFile, place: Place) -> Any:
    value: Any = file.values
    for step in place:
        value = value[step]
    return value


def _unknown_keys(
    model: type[BaseModel], value: dict[Any, Any], place: Place
) -> Iterator[tuple[Place, str]]:
    """Yield the place of every key that is not a field, and a sentence about it."""
    names = set(model.model_fields)
    names |= {field.alias for field in model.model_fields.values() if field.alias}
    for key, below in value.items():
        if key not in names:
            yield (*place, str(key)), f"unknown key `{key}`{_meant(str(key), names)}"
        elif key in model.model_fields:
            kind = model.model_fields[key].annotation
            yield from _unknown_below(kind, below, (*place, key))


def _unknown_below(kind: Any, value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if isinstance(value, dict):
            yield from _unknown_keys(kind, value, place)
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        models = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        takes_any = any(typing.get_origin(a) is dict or a is dict for a in arguments)
        if len(models) == 1 and not takes_any:
            yield from _unknown_below(models[0], value, place)
        elif len(arguments) == 2 and type(None) in arguments:
            yield from _unknown_below(arguments[arguments[0] is type(None)], value, place)
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_below(arguments[0], item, (*place, index))


def _meant(key: str, names: set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known here: {', '.join(sorted(names))}"


def _sentence(error: Any) -> str:
    """Return a pydantic error as a sentence: the key, its value, and what is accepted."""
    key = next((str(step) for step in reversed(error["loc"]) if isinstance(step, str)), "")
    if error["type"] == "missing":
        return f"`{key}` is missing"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    shown = repr(error["input"])
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "…"
    if error["type"] == "value_error":
        return message
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        message = "a mapping of keys to values"
    return f"`{key}: {shown}` is not accepted; it must be {message}"
