"""Write the tables of docs/configuration.md from the code that reads the configuration.

    .venv/bin/python scripts/configuration_tables.py [--check]

`--check` changes nothing and fails if the file is not what would be written.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
HEAD_OF_VARIABLES = ("| variable | default | meaning |", "|---|---|---|")
sys.path.insert(0, str(ROOT))

from musetalk_pipeline.options import JobOptions  # noqa: E402
from serve_app.config.environment import documented  # noqa: E402
from serve_app.config.live_settings import LiveSettings  # noqa: E402
from serve_app.config.settings import AppArgs  # noqa: E402
from serve_app.contract.requests import Params  # noqa: E402
from serve_app.one_shot.variables import VARIABLES  # noqa: E402


def kind_of(annotation: Any) -> str:
    """Return a type as a reader of YAML thinks of it."""
    choices = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    if choices and type(None) in choices:
        return ", ".join(kind_of(choice) for choice in choices if choice is not type(None))
    if typing.get_origin(annotation) in (list, tuple):
        return "list"
    names = {int: "whole number", float: "number", str: "text", bool: "yes or no", Path: "path"}
    if is_dataclass(annotation):
        keys = ", ".join(f"{each.name}: …" for each in fields(annotation))
        return f"`{{{keys}}}`"
    return names.get(annotation, "mapping")


def bounds_of(field: FieldInfo) -> str:
    """Return the numbers that are accepted, e.g. `, 1 to 64`."""
    limits = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(bound, name)
    }
    low = limits.get("ge", limits.get("gt"))
    if low is None or "le" not in limits:
        return "" if low is None else f", {'above' if 'gt' in limits else 'from'} {plain(low)}"
    return f", {'above ' if 'gt' in limits else ''}{plain(low)} to {plain(limits['le'])}"


def plain(number: float) -> str:
    """Return a number without an exponent or a trailing `.0`."""
    return str(int(number)) if number == int(number) else str(number)


def default_of(name: str, field: FieldInfo, fallback: dict[str, Any]) -> str:
    """Return a default as it is written in YAML, or `required` if there is none."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Params):
        return "`{}`"
    value = fallback.get(name) if value is None else value
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, alone or in a list."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def rows(model: type[BaseModel], fallback: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield one table row for each key, including the keys of sections."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None and section is not Params:
            many = {list: "[]", dict: ".<name>"}.get(typing.get_origin(field.annotation), "")
            yield from rows(section, fallback, f"{prefix}{name}{many}.")
            continue
        text = field.description or ("For requests that leave `params` out." if section else "")
        kind = kind_of(field.annotation) + bounds_of(field)
        default = default_of(name, field, fallback)
        yield f"| `{prefix}{name}` | {kind} | {default} | {escaped(text)} |"


def escaped(text: str) -> str:
    """Return a description whose `<` and `|` Markdown shows instead of interpreting them."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def table(model: type[BaseModel], fallback: dict[str, Any]) -> str:
    """Return a Markdown table of all keys of `model`; `fallback` has the defaults behind `none`."""
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows(model, fallback)])


def variables() -> str:
    """Return a Markdown table of the environment variables of each section, under its heading."""
    lines: list[str] = []
    section = ""
    for variable in documented():
        if variable.section != section:
            section = variable.section
            lines += ["", f"### {section}", "", *HEAD_OF_VARIABLES]
        text = escaped(variable.description)
        lines.append(f"| `{variable.name}` | {variable.default} | {text} |")
    return "\n".join([*lines[1:], ""])


def one_shot() -> str:
    """Return a Markdown table of the variables of a one-shot job."""
    lines = [f"| `{name}` | {escaped(text)} |" for name, text in VARIABLES.items()]
    return "\n".join(["| variable | meaning |", "|---|---|", *lines])


def option_defaults() -> dict[str, Any]:
    """Return what a job that chooses nothing gets."""
    parts = [getattr(JobOptions(), part.name) for part in fields(JobOptions)]
    return {name: value for part in parts for name, value in asdict(part).items()}


def filled(text: str) -> str:
    """Return `text` with the lines between each pair of markers replaced by the table."""
    tables = {
        "configuration": table(AppArgs, {}),
        "params": table(Params, option_defaults()),
        "environment": variables(),
        "one-shot": one_shot(),
        "user_config": table(LiveSettings, {}),
    }
    for name, content in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if not found or end not in rest:
            raise SystemExit(f"{PAGE.name} must have the markers of {name}")
        text = before + start + content + "\n" + end + rest.partition(end)[2]
    return text


def main() -> None:
    """Rewrite the page, or check it."""
    old = PAGE.read_text()
    new = filled(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit(f"{PAGE.name} is out of date: run scripts/configuration_tables.py")
        return
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
