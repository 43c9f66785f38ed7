"""What `lipsync doctor` finds: one row for each thing that the project needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingState = Literal["ok", "warning", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`found` says what is there. `missing` means that `lipsync serve` cannot start without it, and
    `warning` that it starts, but something will be slower or refused. Both have a `remedy`.
    """

    name: str
    state: FindingState
    found: str
    remedy: str | None = None
