"""Text and JSON from outside, in a form that both databases store."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue
from pydantic_core import from_json, to_json

MAX_ID_CHARS = 256
MAX_DEPTH = 20


def clipped(max_chars: int) -> BeforeValidator:
    """Return a validator that shortens a text of a worker instead of refusing it."""

    def clip(value: Any) -> Any:
        return value[:max_chars].replace("\0", "") if isinstance(value, str) else value

    return BeforeValidator(clip)


def storable(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with null for NaN and infinity, which JSON does not have.

    Raises:
        ValueError: it is nested too deeply.
    """
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"at most {MAX_DEPTH} levels are kept")
    cleaned: dict[str, Any] = from_json(to_json(value, inf_nan_mode="null"))
    return cleaned


def _depth(value: object) -> int:
    """Return the levels of a value, level by level, so that depth costs no stack."""
    levels, found = 0, [value]
    while found:
        levels += 1
        inner: list[object] = []
        for each in found:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        found = inner
    return levels


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("it has a NUL character")
    return value


Text = Annotated[str, AfterValidator(_without_nul)]
Id = Annotated[Text, Field(min_length=1, max_length=MAX_ID_CHARS)]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(storable)]
