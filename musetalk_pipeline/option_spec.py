"""What is said of one option wherever it can be chosen: its bounds, its default and its help."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal


@dataclass(frozen=True, slots=True)
class Spec:
    """What is said of one option wherever it can be chosen.

    `help`: whole sentences. `least`, `most`: the bounds, both included. `is_param`: a request may
    choose it in `params`. `metavar`: what stands for the value in a usage line, if its type does
    not say enough. `default_text`: the default in words, where it depends on something else.
    `read`: turns the word on a command line into the value, or raises ValueError; None for a type
    that has only one spelling.
    """

    help: str
    least: float | None = None
    most: float | None = None
    is_param: bool = True
    metavar: str | None = None
    default_text: str | None = None
    read: Callable[[str], object] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One field of an options class. `kind`: its type without `None` (`int`, a `Literal`, …)."""

    name: str
    kind: Any
    default: Any
    spec: Spec

    @property
    def flag(self) -> str:
        """The name on a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are accepted; empty if this is not a choice among words."""
        is_choice = typing.get_origin(self.kind) is Literal
        return typing.get_args(self.kind) if is_choice else ()

    @property
    def metavar(self) -> str | None:
        """What stands for the value in a usage line; None if the choices do."""
        if self.kind is bool:
            return ""
        return self.spec.metavar or {int: "N", float: "X"}.get(self.kind)

    @property
    def help_text(self) -> str:
        """The help with the default in a sentence of its own, if there is one."""
        default = self.spec.default_text
        if default is None and self.default is not None and self.default is not False:
            default = str(self.default)
        return self.spec.help if default is None else f"{self.spec.help} Default: {default}."


def options_of(kind: type) -> Iterator[Option]:
    """Yield the options of a dataclass: its fields that have a `Spec`, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        if typing.get_origin(hints[each.name]) is Annotated:
            inner, spec = typing.get_args(hints[each.name])[:2]
            default = None if each.default is MISSING else each.default
            yield Option(each.name, _without_none(inner), default, spec)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    parts = typing.get_args(kind)
    if type(None) not in parts:
        return kind
    [only] = [each for each in parts if each is not type(None)]
    return only
