"""The forms that environment variables may have, and the values that they are read as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticUseDefault
from pydantic_settings import NoDecode

from serve_app.config.origins import origin_of

# Where jobs come from: claimed from the orchestrator's queue or its buffer, or pushed.
Mode = Literal["poll", "buffer", "queue"]
MODES: tuple[Mode, ...] = ("poll", "buffer", "queue")


def _number(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def _count(value: Any) -> int:
    number = _number(value)
    if number != int(number) or number < 0:
        raise ValueError("must be a whole number, not negative")
    if number == 0:
        raise PydanticUseDefault
    return int(number)


def _interval(value: Any) -> float:
    seconds = _number(value)
    if seconds <= 0:
        raise ValueError("must be a number of seconds above 0")
    return seconds


def _flag(value: Any) -> bool:
    return str(value).strip().lower() in {"1", "true", "yes", "on"}


def _name(value: Any) -> str:
    name = str(value).strip()
    if not name:
        raise PydanticUseDefault
    return name


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = value.split(",") if isinstance(value, str) else value
    return tuple(host.strip() for host in hosts if host.strip())


def _folders(value: Any) -> tuple[Path, ...]:
    folders = value.split(":") if isinstance(value, str) else value
    return tuple(Path(folder) for folder in folders if folder)


def _origins(value: Any) -> tuple[str, ...]:
    return tuple(origin_of(origin) for origin in _hosts(value))


def _mode(value: Any) -> str:
    mode = str(value).strip().lower()
    if not mode:
        raise PydanticUseDefault
    if mode not in MODES:
        raise ValueError(f"must be one of {', '.join(MODES)}")
    return mode


def _is_source(value: Any) -> bool:
    text = "source" if value is True else str(value or "").strip().lower()
    if text not in ("", "source"):
        raise ValueError("must be `source`, or not be set")
    return text == "source"


def _is_json(value: Any) -> bool:
    return value is True or str(value).upper() == "JSON"


# `0` counts as unset.
Count = Annotated[int, BeforeValidator(_count)]
Interval = Annotated[float, BeforeValidator(_interval)]
Flag = Annotated[bool, BeforeValidator(_flag)]
# Blanks around it do not count.
Name = Annotated[str, BeforeValidator(_name)]
# NoDecode: these lists are not written as JSON.
Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)]
Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
WorkerMode = Annotated[Mode, BeforeValidator(_mode)]
IsSource = Annotated[bool, BeforeValidator(_is_source)]
IsJson = Annotated[bool, BeforeValidator(_is_json)]
